// What a training needs from outside: where files are written, and when it has to end before it is done.
#pragma once
#include <cstdint>
#include <functional>

#include "io/data/file_ops.h"

namespace pm::app {

struct RunEnvironment {
  io::FileOps& files;
  std::function<int()> stop_signal;  // the signal that asks the run to end, 0 while there is none
};

// Lets Ctrl-C and SIGTERM ask for an end: the first one after the step, the second one at once.
void watch_stop_signals();
// The signal that came since, or 0.
int stop_signal();

// A signal, or as many steps as one call may make (0: any number).
class StopRule {
 public:
  StopRule(const RunEnvironment& environment, int64_t steps)
      : environment_(environment), limited_(steps > 0), left_(steps) {}
  void count_step() { --left_; }
  bool stop() const { return environment_.stop_signal() != 0 || (limited_ && left_ <= 0); }

 private:
  const RunEnvironment& environment_;
  bool limited_;
  int64_t left_;
};

// Says on stderr how a run goes on that a signal or its limit of steps ended. Returns the exit code, 128 + signal or 0.
int interrupted(int signal, int64_t stop_after);

}  // namespace pm::app
