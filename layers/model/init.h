// Published initialisation, drawn on the host in double: the same numbers whatever the device.
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include "engine/core/rng.h"
#include "engine/core/shape.h"

namespace pm::init {

// Value of element `index` of a parameter.
using Fill = std::function<double(const RngState& draw, int64_t index)>;

Fill constant(double value);
Fill uniform(double bound);                                       // [-bound, bound]
Fill truncated_normal(double deviation);                          // cut at two deviations
Fill inverse_softplus_dt(double low, double high, double floor);  // softplus of it is log-uniform in [low, high]
Fill log_range(int64_t d_state);                                  // ln(1..d_state) in every row

}  // namespace pm::init
