#include "layers/model/init.h"

#include <algorithm>
#include <cmath>

namespace pm::init {

Fill constant(double value) {
  return [value](const RngState&, int64_t) { return value; };
}

Fill uniform(double bound) {
  return [bound](const RngState& draw, int64_t index) { return bound * (2.0 * uniform_at(draw, index) - 1.0); };
}

Fill truncated_normal(double deviation) {
  return [deviation](const RngState& draw, int64_t index) { return deviation * truncated_normal_at(draw, index, 2.0); };
}

Fill inverse_softplus_dt(double low, double high, double floor) {
  return [low, high, floor](const RngState& draw, int64_t index) {
    const double exponent = std::log(low) + uniform_at(draw, index) * (std::log(high) - std::log(low));
    const double dt = std::max(std::exp(exponent), floor);
    return dt + std::log(-std::expm1(-dt));
  };
}

Fill log_range(int64_t d_state) {
  return [d_state](const RngState&, int64_t index) { return std::log(static_cast<double>(index % d_state + 1)); };
}

}  // namespace pm::init
