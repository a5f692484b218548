// pixel-mamba: one program, a verb per subcommand. Lists the verbs, maps errors to exit codes.
#include <malloc.h>

#include <algorithm>
#include <cstdio>
#include <numeric>
#include <vector>

#include "apps/command_line.h"
#include "apps/json_config.h"
#include "engine/core/check.h"

namespace {

using pm::app::ExitCode;

constexpr const char* kExamples = R"(pixel-mamba: trains and runs the Pixel-Mamba network on whole slides and images.

Examples
  pixel-mamba infer slide.svs --model 6m --out result        prediction and embedding of one slide
  pixel-mamba finetune slides.csv --out run                  fine-tune on a table of slides
  pixel-mamba finetune slides.csv --folds 5 --out cv         five-fold cross validation; --resume goes on after a stop
  pixel-mamba pretrain images --init 6m --out images-run     a classifier on images, to fine-tune from
  pixel-mamba synth cohort                                   a small made-up cohort to try training with
  pixel-mamba infer new.svs --model run/model --json         predict with the model just trained
  pixel-mamba evaluate predictions.csv --task survival       c-index, Kaplan-Meier, log-rank of predictions
  pixel-mamba inspect slide.svs                              sizes, levels, micrometres per pixel
  pixel-mamba inspect 6m --size 4480                         parameters, FLOPs, memory for a slide size
  pixel-mamba verify golden_folder --device cpu              check numerics against stored references
  pixel-mamba bench ops                                      speed of the operators on this machine

`pixel-mamba VERB --help` explains every option of a verb.
)";

size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t substituted = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({substituted, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
}

// The valid option or verb nearest to a word that was not understood, or nothing when none is near.
std::string nearest(const CLI::App& app, const std::string& word) {
  std::vector<std::string> candidates;
  const auto collect = [&](const CLI::App& level) {
    for (const CLI::Option* option : level.get_options()) {
      for (const std::string& name : option->get_lnames()) candidates.push_back("--" + name);
    }
  };
  collect(app);
  for (const CLI::App* sub : app.get_subcommands([](const CLI::App*) { return true; })) {
    if (!sub->get_group().empty()) candidates.push_back(sub->get_name());
    if (sub->parsed()) collect(*sub);
  }
  candidates.push_back("--config");  // taken out before the rest is parsed
  const std::string stem = word.substr(0, word.find('='));
  const size_t letters = stem.size() - std::min(stem.find_first_not_of('-'), stem.size());
  std::string best;
  size_t best_distance = std::max<size_t>(2, letters / 3) + 1;
  for (const std::string& candidate : candidates) {
    const size_t distance = edit_distance(stem, candidate);
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

// What could have been meant where nothing is near: the options of the chosen verb, or the verbs.
std::string choices(const CLI::App& app) {
  std::string list;
  const auto chosen = app.get_subcommands();
  if (chosen.empty()) {
    for (const CLI::App* verb : app.get_subcommands([](const CLI::App*) { return true; }))
      list += " " + verb->get_name();
    return "the verbs are:" + list;
  }
  for (const CLI::Option* option : chosen[0]->get_options()) {
    for (const std::string& name : option->get_lnames()) list += " --" + name;
  }
  return "the options of " + chosen[0]->get_name() + " are:" + list + " --config";
}

int usage_error(const CLI::App& app, const CLI::ParseError& error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  const auto chosen = app.get_subcommands();
  for (const std::string& word : app.remaining(true)) {
    if (!word.starts_with('-') && !chosen.empty()) continue;  // a value, or one path too many
    const std::string suggestion = nearest(app, word);
    if (suggestion.empty()) {
      std::fprintf(stderr, "%s\n", choices(app).c_str());
    } else {
      std::fprintf(stderr, "did you mean %s instead of %s?\n", suggestion.c_str(), word.c_str());
    }
    if (chosen.empty()) break;  // without a verb the rest of the line means nothing
  }
  std::fprintf(stderr, "see: pixel-mamba %s--help\n", chosen.empty() ? "" : (chosen[0]->get_name() + " ").c_str());
  return ExitCode::kUsage;
}

int fail(int code, const std::exception& error, const char* hint = nullptr) {
  std::fprintf(stderr, "error: %s\n", error.what());
  if (hint != nullptr) std::fprintf(stderr, "%s\n", hint);
  return code;
}

int run(int argc, char** argv) {
  CLI::App app("Pixel-Mamba on whole slides and images", "pixel-mamba");
  app.set_version_flag("--version", std::string("pixel-mamba ") + PM_VERSION);
  app.require_subcommand(0, 1);
  pm::app::Command command;
  command.arguments = {argv + 1, argv + argc};
  pm::app::add_infer(app, command);
  pm::app::add_pretrain(app, command);
  pm::app::add_finetune(app, command);
  pm::app::add_evaluate(app, command);
  pm::app::add_verify(app, command);
  pm::app::add_inspect(app, command);
  pm::app::add_bench(app, command);
  pm::app::add_synth(app, command);
  std::vector<std::string> arguments = pm::app::expand_config({argv + 1, argv + argc});
  std::reverse(arguments.begin(), arguments.end());  // CLI11 takes them from the back
  try {
    app.parse(std::move(arguments));
  } catch (const CLI::Success& success) {
    return app.exit(success);
  } catch (const CLI::ParseError& error) {
    return usage_error(app, error);
  }
  if (app.get_subcommands().empty()) std::printf("%s", kExamples);
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {  // a full disk behind a redirection
    std::fprintf(stderr, "error: the results could not be written to stdout: is the disk full?\n");
    return ExitCode::kOutOfResources;
  }
  return command.exit_code;
}

// Every block of a network asks for the same tens of megabytes again. Without this the C library gives them back to the system
// in between, and a tenth of a training step on the CPU goes into new pages.
void keep_freed_memory() {
#ifdef __GLIBC__
  mallopt(M_MMAP_THRESHOLD, 32 << 20);  // the largest value that it takes
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
#endif
}

}  // namespace

int main(int argc, char** argv) {
  keep_freed_memory();
  try {
    return run(argc, argv);
  } catch (const pm::app::UsageError& error) {
    return fail(ExitCode::kUsage, error);
  } catch (const pm::OutOfMemoryError& error) {
    return fail(ExitCode::kOutOfResources, error,
                "to make it fit: a coarser --mpp (images: a smaller --batch or --image-size), --precision bf16 on the "
                "GPU, or a "
                "device with more memory");
  } catch (const pm::StorageError& error) {
    return fail(ExitCode::kOutOfResources, error,
                "what was saved before is unharmed; free some space, or write to another disk");
  } catch (const pm::IoError& error) {
    return fail(ExitCode::kRejected, error);
  } catch (const pm::ConfigError& error) {
    return fail(ExitCode::kRejected, error);
  } catch (const std::bad_alloc& error) {
    return fail(ExitCode::kOutOfResources, error, "the machine is out of memory: a coarser --mpp needs less");
  } catch (const std::exception& error) {
    return fail(ExitCode::kInternal, error);
  }
}
