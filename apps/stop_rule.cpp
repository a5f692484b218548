#include "apps/stop_rule.h"

#include <fmt/format.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>

#include "apps/common.h"

namespace pm::app {
namespace {

volatile std::sig_atomic_t received_signal = 0;

void remember_signal(int signal) {
  constexpr char kMessage[] = "\nstopping: the step is finished and saved first (once more stops at once)\n";
  received_signal = signal;
  std::signal(SIGINT, SIG_DFL);
  std::signal(SIGTERM, SIG_DFL);
  static_cast<void>(!::write(STDERR_FILENO, kMessage, sizeof(kMessage) - 1));
}

}  // namespace

void watch_stop_signals() {
  std::signal(SIGINT, remember_signal);
  std::signal(SIGTERM, remember_signal);
}

int stop_signal() { return static_cast<int>(received_signal); }

int interrupted(int signal, int64_t stop_after) {
  fmt::print(stderr, "{}; the last finished step is saved. To go on: the same command with --resume\n",
             signal != 0 ? "stopped by a signal" : fmt::format("stopped after {} steps", stop_after));
  return signal != 0 ? 128 + signal : kDone;
}

}  // namespace pm::app
