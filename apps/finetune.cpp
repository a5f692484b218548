// finetune: trains end to end on a table of slides, for staging (classes) or survival. The command line; the run itself is in
// finetune_run.cpp.
#include "apps/finetune.h"

#include "apps/command_line.h"
#include "apps/finetune_cohort.h"
#include "engine/core/check.h"

namespace pm::app {
namespace {

void check_columns(const io::TableOptions& columns) {
  const bool time = !columns.time_column.empty(), event = !columns.event_column.empty(),
             censorship = !columns.censorship_column.empty();
  PM_CHECK(!(event && censorship), UsageError,
           "--event-column and --censorship-column are opposites: give one of them");
  PM_CHECK(
      time == (event || censorship), UsageError,
      "survival needs both a time and what happened then: --time-column, and --event-column or --censorship-column");
  PM_CHECK(!time || columns.endpoint.empty(), UsageError,
           "--endpoint chooses among columns of known names; with --time-column it has no say");
}

int run(const FinetuneOptions& options) {
  check_columns(options.columns);
  if (options.check) return check_finetune(options);
  PM_CHECK(!options.out.empty(), UsageError,
           "--out: a run needs a folder to write to (--check is a dry run without one)");
  watch_stop_signals();
  return run_finetune(options, {io::posix_file_ops(), stop_signal});
}

}  // namespace

void add_finetune(CLI::App& app, Command& command) {
  auto options = std::make_shared<FinetuneOptions>();
  CLI::App* verb = app.add_subcommand("finetune", "Train end to end on a CSV table of slides, for classes or survival");
  verb->add_option(
          "TABLE", options->table,
          "CSV with columns path and label (0, 1, ..) or survival_months and censorship (1 = censored); slide_id, "
          "case_id and mpp where known")
      ->required();
  verb->add_flag(
      "--check", options->check,
      "a dry run: reads table and splits, opens every slide, prints what each fold would learn from, and whether a "
      "run would start; writes nothing");
  verb->add_option("--task", options->task, "classification or survival; auto: by the table's columns")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "classification", "survival"}));
  verb->add_option("--classes", options->classes, "number of classes; 0: the largest label + 1")->capture_default_str();
  verb->add_option("--splits", options->splits,
                   "cross validation: folder of splits_0.csv, .. (columns train, val, test: case or slide ids), one "
                   "such file, or "
                   "the word table for its fold column")
      ->type_name("DIR");
  verb->add_option("--folds", options->folds,
                   "cross validation: cases dealt to so many folds, alike in classes or events")
      ->check(CLI::Range(2, 1000))
      ->excludes("--splits");
  verb->add_option("--accumulate", options->accumulate, "slides per update of the weights")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  verb->add_option("--lr", options->lr, "highest learning rate; falls to 0 along a cosine")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  verb->add_option("--warmup", options->warmup, "updates over which the rate rises from 0 first")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  verb->add_option("--mpp", options->load.mpp, "micrometres per pixel the network sees (4 is about 2.5x)")
      ->capture_default_str()
      ->check(CLI::PositiveNumber)
      ->type_name("UM");
  verb->add_option("--slide-mpp", options->load.slide_mpp, "micrometres per pixel of slides that do not say theirs")
      ->check(CLI::PositiveNumber)
      ->type_name("UM");
  verb->add_option("--slides", options->columns.slides,
                   "folder with the slides of a table without a column of paths; found by id")
      ->type_name("DIR");
  verb->add_option("--fold-column", options->columns.fold_column,
                   "cross validation by a column of the table: each of its values is held out once")
      ->excludes("--splits", "--folds")
      ->type_name("COLUMN");
  struct NamedColumn {
    const char* option;
    std::string io::TableOptions::*name;
    const char* what;
  };
  for (const NamedColumn& column :
       {NamedColumn{"--path-column", &io::TableOptions::path_column,
                    "column of the files, where it is not path or file"},
        NamedColumn{"--slide-column", &io::TableOptions::slide_column,
                    "column of the slides' names, where it is not slide_id"},
        NamedColumn{"--case-column", &io::TableOptions::case_column,
                    "column of the patients, where it is not case_id or the like"},
        NamedColumn{"--label-column", &io::TableOptions::label_column,
                    "column of the classes, where it is not label or stage: numbers from 0, stages, or names"},
        NamedColumn{"--time-column", &io::TableOptions::time_column,
                    "column of the follow-up in months, where it is not survival_months"},
        NamedColumn{"--event-column", &io::TableOptions::event_column,
                    "with --time-column: column where 1 is an event seen"},
        NamedColumn{"--censorship-column", &io::TableOptions::censorship_column,
                    "with --time-column, instead: column where 1 is censored"}}) {
    verb->add_option(column.option, options->columns.*column.name, column.what)->type_name("COLUMN");
  }
  verb->add_option("--endpoint", options->columns.endpoint,
                   "survival: os, dss, pfi, ..: which outcome of a table with several");
  verb->add_flag(
      "--skip-missing", options->columns.skip_missing,
      "leave out rows without outcome or slide, and ids of splits that the table lacks, instead of refusing them");
  verb->add_flag("--keep-background", options->load.keep_background, "also learn from windows without tissue");
  verb->add_flag("--augment", options->augment,
                 "flip, turn and shift slides, vary stain and brightness, drop background windows");
  const auto balance = std::make_shared<std::string>();  // CLI11 rounds a flag's number to a whole one
  verb->add_flag("--balance{1}", *balance,
                 "classes: show every class equally often, slides of rare classes several times an epoch; "
                 "--balance=0.5 goes half the way (square roots of their numbers)")
      ->check(CLI::Range(0.0, 1.0));
  verb->add_option("--workers", options->load.workers, "slides read at a time, ahead of the network")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  verb->add_option("--read-memory", options->load.max_bytes, "memory for slides read ahead, such as 4GB")
      ->capture_default_str()
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/true))
      ->type_name("BYTES");
  verb->add_option("--cache", options->load.cache, "folder that keeps slides at the resolution of --mpp")
      ->type_name("DIR");
  add_training_options(*verb, *options, "slides");
  verb->callback([options, balance, &command] {
    if (!balance->empty()) options->balance = std::stod(*balance);
    options->arguments = command.arguments;
    command.exit_code = run(*options);
  });
}

}  // namespace pm::app
