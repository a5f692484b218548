// The CLS token of every region; see engine/ops/token/gather_cls.h
#pragma once
#include "autograd/core/variable.h"

namespace pm {

Variable gather_cls(Context& ctx, const Variable& tokens);

}  // namespace pm
