// synth: writes a small made-up cohort, slides and tables, to try training with. What its outcomes depend on is written down in
// io/synth/synth_cohort.h.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>

#include "apps/command_line.h"
#include "engine/metrics/survival.h"
#include "io/synth/synth_cohort.h"

namespace pm::app {
namespace {

struct SynthRun {
  io::SynthOptions cohort;
  std::string folder, size;
  bool json = false;
};

std::string size_text(const io::SynthOptions& options) { return fmt::format("{}x{}", options.width, options.height); }

// "1024x768" into the two sides; what is wrong with it otherwise.
std::string parse_size(const std::string& text, io::SynthOptions& options) {
  const char* last = text.data() + text.size();
  int64_t width = 0, height = 0;
  const auto first = std::from_chars(text.data(), last, width);
  if (first.ec == std::errc() && first.ptr != last && *first.ptr == 'x') {
    const auto second = std::from_chars(first.ptr + 1, last, height);
    if (second.ec == std::errc() && second.ptr == last) {
      options.width = width;
      options.height = height;
      return "";
    }
  }
  return fmt::format("a size is WIDTHxHEIGHT in pixels, such as {}; got {}", size_text({}), text);
}

// What ranking the cases by their true score would reach: a network cannot do better, chance aside.
double concordance_of_score(const std::vector<io::SynthCase>& cases) {
  std::vector<double> months, score;
  std::vector<uint8_t> events;
  for (const io::SynthCase& drawn : cases) {
    months.push_back(drawn.months);
    events.push_back(drawn.censored ? 0 : 1);
    score.push_back(drawn.score);
  }
  return metrics::concordance(metrics::FollowUp(months, events), score).index();
}

int run_synth(const SynthRun& run) {
  const io::SynthOptions& o = run.cohort;
  const int64_t slides = o.cases * o.slides_per_case;
  std::vector<io::SynthCase> cases;
  try {
    Progress progress("slides", slides);
    cases = io::write_cohort(run.folder, o, [&](int64_t done) { progress.update(done, ""); });
  } catch (const ConfigError& error) {
    throw UsageError(error.what());
  }
  std::vector<int64_t> stages(4);
  for (const io::SynthCase& drawn : cases) ++stages[static_cast<size_t>(drawn.stage)];
  const auto events =
      std::count_if(cases.begin(), cases.end(), [](const io::SynthCase& drawn) { return !drawn.censored; });
  const double best = concordance_of_score(cases);
  const std::string table = run.folder + "/slides.csv", splits = run.folder + "/splits";
  if (run.json) {
    const nlohmann::ordered_json line = {{"table", table},   {"splits", splits}, {"cases", o.cases},
                                         {"slides", slides}, {"events", events}, {"stages", stages},
                                         {"folds", o.folds}, {"width", o.width}, {"height", o.height},
                                         {"mpp", o.mpp},     {"seed", o.seed},   {"c_index_of_score", best}};
    fmt::print("{}\n", line.dump());
    return kDone;
  }
  fmt::print("{}: {} cases, {} slides, {} events; per stage {} cases\n", table, o.cases, slides, events,
             fmt::join(stages, ", "));
  fmt::print("{}/slides: tiled pyramids of {} pixels, {:g} um per pixel\n", run.folder, size_text(o), o.mpp);
  fmt::print("{0}: splits_0.csv to splits_{1}.csv, each case held out once\n", splits, o.folds - 1);
  fmt::print("concordance of the score that the outcomes were drawn from: {:.3f}\n", best);
  return kDone;
}

}  // namespace

void add_synth(CLI::App& app, Command& command) {
  auto run = std::make_shared<SynthRun>();
  run->size = size_text(run->cohort);
  CLI::App* verb = app.add_subcommand(
      "synth", "Write a small made-up cohort: slides, a table of stages and survival, splits for cross validation");
  verb->add_option("DIR", run->folder, "folder to write, new or empty")->required();
  verb->add_option("--cases", run->cohort.cases, "number of cases")->capture_default_str()->type_name("N");
  verb->add_option("--slides-per-case", run->cohort.slides_per_case, "number of slides of each case")
      ->capture_default_str()
      ->type_name("N");
  verb->add_option("--size", run->size, "of a slide, pixels")
      ->capture_default_str()
      ->check(CLI::Validator([run](const std::string& text) { return parse_size(text, run->cohort); }, ""))
      ->type_name("WxH");
  verb->add_option("--mpp", run->cohort.mpp, "micrometres per pixel of a slide")
      ->capture_default_str()
      ->check(positive_number())
      ->type_name("UM");
  verb->add_option("--folds", run->cohort.folds, "splits to write")->capture_default_str()->type_name("N");
  verb->add_option("--seed", run->cohort.seed, "another seed, another cohort")
      ->capture_default_str()
      ->check(whole_number())
      ->type_name("N");
  verb->add_flag("--json", run->json, "one JSON object on stdout");
  verb->callback([run, &command] { command.exit_code = run_synth(*run); });
}

}  // namespace pm::app
