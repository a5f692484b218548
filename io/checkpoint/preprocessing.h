// How slides were made into what a model was trained on, and what its outputs are called: a file beside its weights, so that
// prediction does the same.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "io/data/file_ops.h"

namespace pm::io {

struct Preprocessing {
  double mpp = 4.0;                      // micrometres per pixel
  bool keep_background = true;           // false: windows without tissue were left out
  std::vector<std::string> class_names;  // in the order of the outputs; empty: they have none
};

// preprocessing.json of a model folder; nothing where there is none. Throws IoError naming the file when it is damaged or has an
// unknown key.
std::optional<Preprocessing> read_preprocessing(const std::string& folder);
void write_preprocessing(const std::string& folder, const Preprocessing& preprocessing, FileOps& ops);

}  // namespace pm::io
