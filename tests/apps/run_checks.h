// What tests of trainings share: runs without their output, and two run folders that must agree.
#pragma once
#include <functional>
#include <string>

#include "tests/io/failing_files.h"

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

// A fault at every `stride`-th file call of a run, and at some of its many writes: each time the run ends with an error or a kill, and
// resuming leads to the end of a run without faults. `run` begins or resumes the run in a folder and returns its exit code.
void check_faults(const std::string& parent, FailingFiles::How how, int64_t stride,
                  const std::function<int(const std::string& folder, io::FileOps& files)>& run);

}  // namespace pm::test
