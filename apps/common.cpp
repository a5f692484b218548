#include <sys/ioctl.h>
#include <unistd.h>

#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdio>

#include "apps/command_line.h"
#include "engine/core/check.h"
#include "engine/ops/backends.h"
#include "io/checkpoint/model_folder.h"

namespace pm::app {
namespace {

Device parse_device(const std::string& text) {
  if (text == "cpu") return Device::cpu();
  if (text == "cuda") return Device::cuda(0);
  int index = -1;
  if (text.starts_with("cuda:")) {
    const char* last = text.data() + text.size();
    const auto [end, failure] = std::from_chars(text.data() + 5, last, index);
    if (failure != std::errc() || end != last) index = -1;
  }
  PM_CHECK(index >= 0, UsageError, "{} is no device; choose auto, cpu, cuda or cuda:i with the number of the GPU",
           text);
  return Device::cuda(index);
}

// Wrong words are a mistake in the command line, whatever else is wrong.
std::string check_device(const std::string& text) {
  try {
    if (text != "auto") parse_device(text);
    return "";
  } catch (const UsageError& error) {
    return error.what();
  }
}

Device choose_device(const std::string& text) {
  if (text != "auto") return parse_device(text);
  const Device device = cuda_device_count() > 0 ? Device::cuda(0) : Device::cpu();
  const char* why = !device.is_cpu() ? "" : built_with_cuda() ? " (no GPU found)" : " (this build has no CUDA)";
  fmt::print(stderr, "device: {}, {}{}\n", device.str(), make_backend(device)->description(), why);
  return device;
}

}  // namespace

void add_run_options(CLI::App& command, RunOptions& options) {
  command.add_option("--device", options.device, "cpu, cuda or cuda:i; auto takes the GPU if there is one")
      ->capture_default_str()
      ->check(CLI::Validator(check_device, ""))
      ->type_name("DEVICE");
  command
      .add_option("--precision", options.precision,
                  "fp32; GPU: tf32 (fp32 with TF32 matrix products), bf16 (storage; sums stay fp32); CPU: fp64")
      ->capture_default_str()
      ->check(CLI::IsMember({"fp32", "tf32", "bf16", "fp64"}))
      ->type_name("TYPE");
  command.add_option("--seed", options.seed, "seed of everything random")
      ->capture_default_str()
      ->check(whole_number())
      ->type_name("N");
  command.add_flag("--json", options.json, "results on stdout as JSON, one object per line");
  command.footer("--config FILE takes option values from a JSON object, {\"seed\": 7}; options given here win.");
}

std::unique_ptr<Context> make_context(const RunOptions& options) {
  const Device device = choose_device(options.device);
  PM_CHECK(device.is_cpu() || cuda_device_count() > device.index, UsageError, "--device {}: {}", options.device,
           built_with_cuda() ? fmt::format("{} GPU(s) found; use --device cpu", cuda_device_count())
                             : std::string("this build has no CUDA; use --device cpu"));
  auto ctx = std::make_unique<Context>(make_backend(device), options.seed);
  ctx->backend().allow_tf32(options.precision == "tf32");
  return ctx;
}

DType activation_type(const RunOptions& options, Device device) {
  if (options.precision == "fp32") return DType::f32;
  const bool wants_cpu = options.precision == "fp64";
  PM_CHECK(wants_cpu == device.is_cpu(), UsageError, "--precision {} runs on the {} only; here: --precision fp32{}",
           options.precision, wants_cpu ? "CPU" : "GPU", device.is_cpu() ? " or fp64" : ", tf32 or bf16");
  if (options.precision == "tf32") return DType::f32;
  return wants_cpu ? DType::f64 : DType::bf16;
}

PixelMamba load_model(Context& ctx, const std::string& model, const RunOptions& options) {
  const DType activation = activation_type(options, ctx.device());
  if (!is_model_name(model)) return io::read_model(ctx, model, activation);
  fmt::print(stderr, "model: {} with random weights from seed {}; its predictions mean nothing until it is trained\n",
             model, options.seed);
  return PixelMamba(ctx, named_config(model, 1000), activation, options.seed);
}

CLI::Validator whole_number() {
  return CLI::Validator(
      [](const std::string& text) { return text.starts_with('-') ? text + " is below 0" : std::string(); }, "");
}

CLI::Validator positive_number() {
  return CLI::Validator(
      [](const std::string& text) {
        double value = 0.0;
        const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), value);
        const bool fits =
            failure == std::errc() && end == text.data() + text.size() && std::isfinite(value) && value > 0.0;
        return fits ? std::string() : fmt::format("a number above 0 is needed, got {}", text);
      },
      "");
}

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::string duration(double seconds) {
  const auto whole = static_cast<int64_t>(seconds + 0.5);
  if (whole < 60) return fmt::format("{}s", whole);
  if (whole < 3600) return fmt::format("{}m {:02}s", whole / 60, whole % 60);
  return fmt::format("{}h {:02}m", whole / 3600, whole % 3600 / 60);
}

std::string byte_size(double bytes) {
  if (bytes < 1e6) return fmt::format("{:.1f} kB", bytes / 1e3);
  return bytes < 1e9 ? fmt::format("{:.1f} MB", bytes / 1e6) : fmt::format("{:.2f} GB", bytes / 1e9);
}

Progress::Progress(std::string label, int64_t total, int64_t done, std::string unit)
    : label_(std::move(label)),
      unit_(std::move(unit)),
      total_(total),
      first_(done),
      start_(now_seconds()),
      terminal_(isatty(STDERR_FILENO) != 0) {}

Progress::~Progress() {
  if (drawn_) std::fputc('\n', stderr);
}

void Progress::update(int64_t done, const std::string& detail) {
  const double now = now_seconds();
  if (!terminal_ && done < total_ && now - last_printed_ < 10.0) return;
  last_printed_ = now;
  const double elapsed = now - start_;
  const double rate = elapsed > 0.0 ? static_cast<double>(done - first_) / elapsed : 0.0;
  const std::string left = rate > 0.0 ? duration(static_cast<double>(total_ - done) / rate) : "?";
  std::string line = fmt::format("{} {}/{}  {:.2f}{}/s  {} left  {}", label_, done, total_, rate, unit_, left, detail);
  if (terminal_) {
    winsize window{};
    const bool known = ioctl(STDERR_FILENO, TIOCGWINSZ, &window) == 0 && window.ws_col > 1;
    if (known && line.size() >= window.ws_col) line.resize(window.ws_col - 1);  // a line that wraps cannot be redrawn
    fmt::print(stderr, "\r{}\x1b[K", line);
    drawn_ = true;
  } else {
    fmt::print(stderr, "{}\n", line);
  }
  std::fflush(stderr);
}

void Progress::note(const std::string& text) {
  fmt::print(stderr, "{}{}\n", drawn_ ? "\r\x1b[K" : "", text);
  drawn_ = false;
}

}  // namespace pm::app
