// Pixels to tokens; see engine/ops/token/serialize.h. Gradients reach cls_token and float images.
#pragma once
#include "autograd/core/variable.h"
#include "engine/ops/token/serialize.h"

namespace pm {

Variable serialize(Context& ctx, const Variable& image, const Variable& cls_token, const SerializeOptions& options);

}  // namespace pm
