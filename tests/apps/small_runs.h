// The small models and pictures that tests of the program run on.
#pragma once
#include <string>

#include "layers/model/config.h"

namespace pm::test {

// A four-layer model on 16 x 16 regions: fast enough to train in a test. Returns the folder.
std::string write_small_model(const std::string& folder, Head head, int64_t outputs);
// Stripes, across for even, down for odd numbers. Returns the path of the picture.
std::string write_stripes(const std::string& folder, int index);

}  // namespace pm::test
