// What tests of trainings share: runs without their output, and two run folders that must agree.
#pragma once
#include <string>

namespace pm::test {

// While alive, nothing appears on stdout and stderr: what runs print belongs to no test report.
class Quiet {
 public:
  Quiet();
  ~Quiet();
  Quiet(const Quiet&) = delete;
  Quiet& operator=(const Quiet&) = delete;

 private:
  int out_, err_;
};

// metrics.jsonl without what depends on the clock and on the allocator.
std::string metrics_of(const std::string& file);
// Everything that a run leaves must be the same: models, optimiser, averages, predictions, metrics.
void check_same_run(const std::string& run, const std::string& reference);

}  // namespace pm::test
