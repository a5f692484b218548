// Gradients that one bad slide cannot spoil: what is accumulated takes up a slide's gradients only when all are finite.
#pragma once
#include <string>
#include <vector>

#include "layers/model/pixel_mamba.h"

namespace pm::app {

// Moves the gradients out of the model, undefined where there is none: what has been accumulated so far.
std::vector<Tensor> take_gradients(PixelMamba& model);
void put_gradients(PixelMamba& model, const std::vector<Tensor>& gradients);

// Adds `accumulated` to the gradients that backward() has just left in the model. When the sum is not finite, the model holds
// `accumulated` as before and the parameter nearest to the loss that spoils it is named; otherwise the result is empty. Waits for
// the device.
std::string accumulate_if_finite(Context& ctx, PixelMamba& model, const std::vector<Tensor>& accumulated);

// Where a forward pass stops being finite: "the weight X", "layer 3 of 24", "the head".
std::string locate_not_finite(Context& ctx, const PixelMamba& model, const Tensor& image, double drop_path,
                              RngState rng);

}  // namespace pm::app
