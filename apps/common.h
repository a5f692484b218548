// What the subcommands share: the run options, the context they make, progress on stderr. Their options: apps/command_line.h.
#pragma once
#include <cstdint>
#include <memory>
#include <string>

#include "engine/core/error.h"
#include "engine/core/tensor.h"
#include "layers/model/pixel_mamba.h"

namespace pm::app {

// Exit codes, the same for every subcommand.
enum ExitCode : int { kDone = 0, kInternal = 1, kUsage = 2, kRejected = 3, kOutOfResources = 4 };

// A mistake in the command line that only shows once it is read.
class UsageError : public Error {
 public:
  using Error::Error;
};

struct RunOptions {
  std::string device = "auto";     // auto | cpu | cuda | cuda:i
  std::string precision = "fp32";  // fp32 | tf32 | bf16 (CUDA) | fp64 (CPU)
  uint64_t seed = 0;
  bool json = false;
};

// The context for --device and --seed; says on stderr which device was taken when the choice was left open.
std::unique_ptr<Context> make_context(const RunOptions& options);
// Element type of the activations for --precision on this device. Throws UsageError for a pair that does not exist.
DType activation_type(const RunOptions& options, Device device);

// A model folder, or 6m / 21m / nano with random weights from --seed (said on stderr).
PixelMamba load_model(Context& ctx, const std::string& model, const RunOptions& options);

// One line on stderr that redraws itself on a terminal; elsewhere a line at most every ten seconds, and the last.
class Progress {
 public:
  // `done` of `total` lie behind already: a run that goes on. `unit` follows the number in the rate.
  Progress(std::string label, int64_t total, int64_t done = 0, std::string unit = "");
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  void update(int64_t done, const std::string& detail);
  // A line that stays.
  void note(const std::string& text);

 private:
  std::string label_, unit_;
  int64_t total_, first_;
  double start_;
  double last_printed_ = 0.0;
  bool terminal_, drawn_ = false;
};

// Seconds of a steady clock.
double now_seconds();
// "2m 05s"
std::string duration(double seconds);
// "1.25 GB"
std::string byte_size(double bytes);

}  // namespace pm::app
