// synth: writes a small made-up cohort to try the program with.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "apps/common.h"
#include "io/synth/synth_cohort.h"

namespace pm::app {
namespace {

struct SynthRun {
  io::SynthOptions cohort;
  std::string folder;
  bool json = false;
};

int run_synth(const SynthRun& run) {
  const io::SynthOptions& o = run.cohort;
  std::vector<io::SynthCase> cases;
  {
    Progress progress("slides", o.cases * o.slides_per_case);
    cases = io::write_cohort(run.folder, o, [&](int64_t done) { progress.update(done, ""); });
  }
  int64_t stages[4] = {}, events = 0;
  for (const io::SynthCase& drawn : cases) {
    ++stages[drawn.stage];
    events += drawn.censored ? 0 : 1;
  }
  fmt::print("{}/slides.csv: {} cases, {} slides, {} events\n", run.folder, o.cases, o.cases * o.slides_per_case, events);
  return kDone;
}

}  // namespace

void add_synth(CLI::App& app, Command& command) {
  auto run = std::make_shared<SynthRun>();
  CLI::App* verb = app.add_subcommand("synth", "Write a small made-up cohort");
  verb->add_option("DIR", run->folder, "folder to write")->required();
  verb->add_option("--cases", run->cohort.cases)->capture_default_str();
  verb->add_option("--seed", run->cohort.seed)->capture_default_str();
  verb->add_option("--width", run->cohort.width)->capture_default_str();
  verb->add_option("--height", run->cohort.height)->capture_default_str();
  verb->callback([run, &command] { command.exit_code = run_synth(*run); });
}

}  // namespace pm::app
