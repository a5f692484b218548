#include "engine/ops/loss/survival_nll.h"

#include <algorithm>
#include <cmath>

#include "engine/cpu/core/dispatch.h"

namespace pm::cpu {
namespace {

double hazard(double logit) { return 1.0 / (1.0 + std::exp(-logit)); }

// S(last), 1 for last = -1.
template <typename T>
double survival(const T* logits, int64_t last) {
  double product = 1.0;
  for (int64_t j = 0; j <= last; ++j)
    product *= hazard(-static_cast<double>(logits[j]));  // 1 - sigmoid(v) = sigmoid(-v)
  return product;
}

double floored_log(double argument) {
  return std::log(std::isnan(argument) ? argument : std::max(argument, kSurvivalFloor));
}

void check_entry(int64_t row, int64_t bin, int64_t censored, int64_t n_bins) {
  PM_CHECK(0 <= bin && bin < n_bins, Error, "survival_nll: bin {} of entry {} is outside [0, {})", bin, row, n_bins);
  PM_CHECK(censored == 0 || censored == 1, Error, "survival_nll: censored of entry {} must be 0 or 1, it is {}", row,
           censored);
}

}  // namespace

void survival_nll(const SurvivalNllArgs& args) {
  dispatch_float(args.dtype, [&]<typename T>() {
    double total = 0.0;
    for (int64_t row = 0; row < args.batch; ++row) {
      const T* logits = static_cast<const T*>(args.logits) + row * args.n_bins;
      const int64_t bin = args.bin[row];
      check_entry(row, bin, args.censored[row], args.n_bins);
      if (args.censored[row] == 1) {
        total -= floored_log(survival(logits, bin));
      } else {
        total -= floored_log(survival(logits, bin - 1)) + floored_log(hazard(static_cast<double>(logits[bin])));
      }
    }
    *static_cast<T*>(args.loss) = static_cast<T>(total / static_cast<double>(args.batch));
  });
}

void survival_nll_grad(const SurvivalNllGradArgs& args) {
  dispatch_float(args.dtype, [&]<typename T>() {
    const double scale = static_cast<double>(*static_cast<const T*>(args.dloss)) / static_cast<double>(args.batch);
    for (int64_t row = 0; row < args.batch; ++row) {
      const T* logits = static_cast<const T*>(args.logits) + row * args.n_bins;
      T* dlogits = static_cast<T*>(args.dlogits) + row * args.n_bins;
      const int64_t bin = args.bin[row];
      check_entry(row, bin, args.censored[row], args.n_bins);
      const bool died = args.censored[row] == 0;
      const int64_t last = died ? bin - 1 : bin;  // survived bins
      const bool survival_counts = !(survival(logits, last) < kSurvivalFloor);
      for (int64_t j = 0; j < args.n_bins; ++j) {
        const double h = hazard(static_cast<double>(logits[j]));
        double gradient = 0.0;
        if (j <= last && survival_counts) gradient = h;
        if (j == bin && died && !(h < kSurvivalFloor)) gradient = -hazard(-static_cast<double>(logits[j]));
        dlogits[j] = static_cast<T>(scale * gradient);
      }
    }
  });
}

}  // namespace pm::cpu
