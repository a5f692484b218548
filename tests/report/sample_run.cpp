#include "tests/report/sample_run.h"

#include <algorithm>
#include <cmath>
#include <random>

namespace pm::test {
namespace {

double unit(std::mt19937& random) { return (static_cast<double>(random()) + 0.5) / 4294967296.0; }

// Adds cases of a group with exponential times, some censored.
void add_cases(std::vector<double>& months, std::vector<uint8_t>& event, int64_t cases, double rate, uint32_t seed) {
  std::mt19937 random(seed);
  for (int64_t i = 0; i < cases; ++i) {
    const double death = -std::log(unit(random)) / rate, end = 6.0 + 134.0 * unit(random);
    months.push_back(std::round(10.0 * std::min(death, end)) / 10.0);
    event.push_back(death <= end ? 1 : 0);
  }
}

io::KaplanMeierPlot survival_plot() {
  std::vector<double> months;
  std::vector<uint8_t> event;
  add_cases(months, event, 120, 0.006, 5);
  add_cases(months, event, 120, 0.016, 6);
  std::vector<int64_t> group(240, 1);
  std::fill_n(group.begin(), 120, 0);
  io::KaplanMeierPlot plot = io::kaplan_meier_plot({months, event}, group, {"low risk", "high risk"});
  plot.note = "Held-out cases of all folds, halved at the median predicted risk of their fold.";
  return plot;
}

io::FoldCurves fold_curves(const std::string& fold, int64_t epochs, uint32_t seed, double best) {
  std::mt19937 random(seed);
  constexpr int64_t kSteps = 22;
  io::FoldCurves curves;
  curves.fold = fold;
  for (int64_t step = 1; step <= epochs * kSteps; ++step) {
    const double epoch = static_cast<double>(step) / kSteps;
    curves.train_loss.push_back({epoch, 0.55 + 0.95 * std::exp(-epoch / 9.0) + 0.12 * (unit(random) - 0.5)});
    const double warm = std::min(1.0, epoch / 3.0);
    curves.learning_rate.push_back({epoch, 4e-4 * warm * 0.5 * (1.0 + std::cos(3.14159265 * epoch / 40.0))});
  }
  for (int64_t epoch = 1; epoch <= epochs; ++epoch) {
    const auto e = static_cast<double>(epoch);
    curves.validation_loss.push_back({e, 0.82 + 0.7 * std::exp(-e / 7.0) + 0.004 * e + 0.05 * (unit(random) - 0.5)});
    curves.validation_metric.push_back({e, best - (best - 0.5) * std::exp(-e / 6.0) + 0.03 * (unit(random) - 0.5)});
  }
  return curves;
}

// Pink tissue with darker spots on white.
io::Thumbnail tissue(int64_t width, int64_t height, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<uint8_t> rgb(static_cast<size_t>(width * height * 3), 243);
  const double cx = 0.5 + 0.1 * (unit(random) - 0.5), cy = 0.5, phase = 6.0 * unit(random);
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t x = 0; x < width; ++x) {
      const double u = static_cast<double>(x) / static_cast<double>(width) - cx,
                   v = static_cast<double>(y) / static_cast<double>(height) - cy;
      const double edge =
          0.36 + 0.06 * std::sin(3.0 * std::atan2(v, u) + phase) + 0.02 * std::sin(11.0 * std::atan2(v, u));
      if (u * u + v * v > edge * edge) continue;
      const double spot = 0.5 + 0.5 * std::sin(40.0 * u + phase) * std::sin(37.0 * v) + 0.5 * (unit(random) - 0.5);
      const size_t at = static_cast<size_t>((y * width + x) * 3);
      rgb[at] = static_cast<uint8_t>(205.0 - 60.0 * spot);
      rgb[at + 1] = static_cast<uint8_t>(140.0 - 50.0 * spot);
      rgb[at + 2] = static_cast<uint8_t>(185.0 - 35.0 * spot);
    }
  }
  return io::make_thumbnail(rgb.data(), width, height);
}

}  // namespace

io::RunReport sample_survival_run() {
  io::RunReport run;
  run.title = "Survival from tumour slides, cohort_240.csv";
  run.metrics = {{"concordance index", 0.5, 0.661, 0.608, 0.713},
                 {"integrated Brier score", std::nullopt, 0.171, std::nullopt, std::nullopt}};
  const double index[] = {0.688, 0.641, 0.702, 0.629};
  for (int64_t fold = 0; fold < 4; ++fold) {
    io::ReportFold entry;
    entry.name = std::to_string(fold);
    entry.state = io::FoldState::done;
    entry.train_cases = 180;
    entry.validation_cases = 60;
    entry.validation_events = 24 + fold;
    entry.epochs_done = entry.epochs = 40;
    entry.metrics = {index[fold], 0.165 + 0.004 * static_cast<double>(fold)};
    run.folds.push_back(entry);
    run.curves.push_back(fold_curves(entry.name, 40, static_cast<uint32_t>(100 + fold), index[fold]));
  }
  run.warnings = {
      "12 steps were skipped because the gradient was not finite: slide S-0113, layer blocks.7.mixer.in_proj, first at "
      "epoch 3."};
  run.settings = {{"Model", "6m, random weights, seed 1"},
                  {"Resolution", "4.0 µm per pixel"},
                  {"Optimiser", "AdamW, weight decay 0.05"},
                  {"Learning rate", "4e-4, cosine, 3 epochs of warm-up"},
                  {"Accumulation", "8 slides"},
                  {"Epochs", "40"},
                  {"Precision", "bf16"},
                  {"Augmentation", "flips, quarter turns, stain jitter 0.05"},
                  {"Time bins", "4, cut at 14.2, 27.9 and 52.3 months (training fold)"},
                  {"Gradient clipping", "1.0"}};
  io::CohortAudit cohort;
  cohort.table = "/data/cohort_240/cohort_240.csv";
  cohort.count_names = {"below 14.2", "14.2 to 27.9", "27.9 to 52.3", "above 52.3"};
  cohort.rows = {{"whole cohort", 240, 251, 102, {63, 61, 64, 63}}};
  for (int64_t fold = 0; fold < 4; ++fold) {
    cohort.rows.push_back({"fold " + std::to_string(fold) + ", training", 180, 188, 77, {47, 46, 48, 47}});
    cohort.rows.push_back({"fold " + std::to_string(fold) + ", held out", 60, 63, 25, {16, 15, 16, 16}});
  }
  cohort.remarks = {"11 cases have two slides: each slide is a sample, predictions are averaged per case.",
                    "Two slides were left out, see above."};
  run.cohort = cohort;
  run.kaplan_meier = survival_plot();
  const char* predictions[] = {"low risk (3rd percentile)", "low risk (8th percentile)", "high risk (97th percentile)"};
  for (uint32_t i = 0; i < 8; ++i) {
    io::WorstSlide slide;
    slide.slide_id = "TCGA-A2-A0" + std::to_string(71 + i) + "-01Z-00-DX1";
    slide.case_id = slide.slide_id.substr(0, 12);
    slide.fold = std::to_string(i % 4);
    slide.loss = 4.8 - 0.31 * i;
    slide.truth = i % 3 == 2 ? "alive after 118 months" : "died after " + std::to_string(4 + 3 * i) + " months";
    slide.prediction = predictions[i % 3];
    if (i != 5) slide.thumbnail = i % 2 == 0 ? tissue(900, 640, i + 1) : tissue(420, 760, i + 1);
    run.worst_slides.push_back(slide);
  }
  run.slide_problems = {{"S-0042", "/data/cohort_240/slides/S-0042.svs", true,
                         "the file is cut off: 48.1 MB of 92.7 MB are there. Copy it again."},
                        {"S-0107", "/data/cohort_240/slides/S-0107.tiff", true,
                         "no physical resolution in the file: give --slide-mpp or a column mpp."},
                        {"S-0199", "/data/cohort_240/slides/S-0199.ndpi", false,
                         "3 of 412 tiles cannot be decoded and were read as white."}};
  run.command_line =
      "pixel-mamba finetune /data/cohort_240/cohort_240.csv --splits /data/cohort_240/splits --task survival --init 6m "
      "--mpp 4.0 --precision bf16 "
      "--epochs 40 --out runs/survival_6m";
  run.versions = {{"Program", "pixel-mamba 0.1.0"},   {"Device", "CPU, 8 threads"}, {"Seed", "1"},
                  {"Started", "2025-03-04 09:12:33"}, {"Duration", "3 h 41 min"},   {"Memory, at most", "21.4 GB"}};
  return run;
}

io::RunReport sample_staging_run() {
  io::RunReport run;
  run.title = "Staging";
  run.metrics = {{"macro F1", 0.25, 0.41, 0.24, 0.57},
                 {"balanced accuracy", 0.25, std::nullopt, std::nullopt, std::nullopt},
                 {"AUC", 0.5, std::nullopt, std::nullopt, std::nullopt}};
  const io::FoldState states[] = {io::FoldState::done, io::FoldState::done, io::FoldState::failed,
                                  io::FoldState::running, io::FoldState::waiting};
  for (int64_t fold = 0; fold < 5; ++fold) {
    io::ReportFold entry;
    entry.name = std::to_string(fold);
    entry.state = states[fold];
    entry.epochs = 20;
    entry.epochs_done = fold < 2 ? 20 : fold == 2 ? 4 : fold == 3 ? 9 : 0;
    entry.train_cases = 80;
    entry.validation_cases = 20;
    if (fold < 2) entry.metrics = {0.44 - 0.05 * static_cast<double>(fold), 0.46, 0.71};
    if (fold == 2)
      entry.note =
          "Ten steps in a row had a loss that is not finite (slide B-17): the last good checkpoint is kept, a lower "
          "--lr may help.";
    run.folds.push_back(entry);
    if (fold != 4) run.curves.push_back(fold_curves(entry.name, entry.epochs_done, static_cast<uint32_t>(fold), 0.46));
  }
  run.confusion = io::ConfusionMatrix{{"stage I", "stage II", "stage III with a long name", "stage IV"},
                                      {{9, 3, 1, 0}, {4, 7, 2, 1}, {1, 3, 4, 0}, {0, 1, 2, 2}}};
  return run;
}

}  // namespace pm::test
