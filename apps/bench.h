// What the kinds of `bench` share: options, the clock, and the report that prints rows and compares them with an earlier run.
#pragma once
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "apps/common.h"

namespace pm::app {

// Ceilings of an H200, for the share of the floor: device copy, and the exponential unit.
constexpr double kBytesPerSecond = 4.25e12;
constexpr double kExpsPerSecond = 4.2e12;
// A training step does each layer's exponentials forward, again in the recomputed forward, and one and a half times backward.
constexpr double kTrainingFloor = 3.5;

struct BenchOptions {
  RunOptions run;
  std::string model = "6m", mode = "infer";
  int64_t batch = 128, size = 0, region_size = 0, repeats = 0;
  int64_t d_inner = 0, seq_len = 0, d_state = 16;
  bool graph = false, graph_chosen = false;  // capture the training step; not chosen: for images on a GPU
  std::string baseline;                      // file with the lines of an earlier --json run; empty: none
  double tolerance = 10.0;                   // percent
};

// Median of `repeats` timed runs after two warm-up runs; 0 repeats: as many as fit two seconds, 3 to 50. With `flush`, the
// device's cache is emptied before each.
double median_ms(Context& ctx, int64_t repeats, bool flush, const std::function<void()>& work);

// Prints each row as it comes, as text or JSON, beside what an earlier run measured for it.
class BenchReport {
 public:
  // Reads the baseline. Throws IoError when it cannot be read or is not what --json prints.
  explicit BenchReport(const BenchOptions& options);

  // `what` names the row, `measured` are its figures ("ms" among them); `text` is the row for people.
  void add(const nlohmann::ordered_json& what, nlohmann::ordered_json measured, const std::string& text);
  // The exit code: 1 when a row is slower than its baseline by more than the tolerance. Says on stderr what was compared.
  int finish() const;

 private:
  bool json_, compares_;
  double tolerance_;
  std::map<std::string, double> baseline_ms_;  // by the row's name
  int rows_ = 0, compared_ = 0, slower_ = 0;
};

int bench_ops(const BenchOptions& options);
// kind: "images" or "slide" (batch 1). One forward pass, or one training step, over square images.
int bench_model(const std::string& kind, const BenchOptions& options);

}  // namespace pm::app
