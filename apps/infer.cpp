// infer: slides or images in, prediction and embedding out.
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "apps/command_line.h"
#include "apps/predict.h"
#include "engine/core/check.h"
#include "io/checkpoint/preprocessing.h"
#include "io/data/atomic_file.h"
#include "io/data/csv.h"
#include "io/data/npy.h"
#include "io/slide/windows.h"
#include "layers/model/config.h"

namespace pm::app {
namespace {

struct InferOptions {
  RunOptions run;
  std::optional<double> mpp, slide_mpp;  // mpp: the model's, or 4, where it is not given
  bool keep_background = false, skip_background = false;
  std::string input, model = "6m", out;
  bool embedding = false;
};

// What the slides go through before the network.
struct Reading {
  ReadOptions read;
  bool keep_background = true;
  std::vector<std::string> class_names;  // of the outputs; empty: they have none
};

struct SlideResult {
  io::SlideRow row;
  io::SlideImage slide;  // its pixels are dropped once the prediction is there
  Prediction prediction;
  std::string class_name;            // of the most probable class; empty: it has none
  int64_t windows = 0, skipped = 0;  // of the picture; without tissue, not shown to the network
  bool no_tissue = false;
  double read_seconds = 0.0, compute_seconds = 0.0;
};

SlideResult infer_one(Context& ctx, const PixelMamba& model, const io::SlideRow& row, const Reading& reading) {
  SlideResult result;
  result.row = row;
  const double start = now_seconds();
  result.slide = read_slide_row(row, reading.read);
  const int64_t side = model.config().region_size;
  const int64_t width = result.slide.image.width, height = result.slide.image.height;
  result.windows = (width + side - 1) / side * ((height + side - 1) / side);
  if (!reading.keep_background) {
    io::TissueWindows tissue = io::leave_out_background(std::move(result.slide.image), result.slide.mpp, side,
                                                        model.config().scan == ScanOrder::raster);
    result.slide.image = std::move(tissue.image);
    result.skipped = tissue.left_out;
    result.no_tissue = tissue.no_tissue;
  }
  const double read = now_seconds();
  result.prediction = predict(ctx, model, image_tensor(ctx, result.slide.image));
  if (model.config().head == Head::classification && !reading.class_names.empty()) {
    result.class_name = reading.class_names.at(static_cast<size_t>(best_class(result.prediction)));
  }
  result.read_seconds = read - start;
  result.compute_seconds = now_seconds() - read;
  result.slide.image = {width, height, {}};
  return result;
}

void print_json(const SlideResult& result, Head head, bool embedding) {
  nlohmann::ordered_json line = {{"slide_id", result.row.slide_id}};
  const Prediction& p = result.prediction;
  if (head != Head::none) line["logits"] = p.logits;
  if (head == Head::classification) line["probabilities"] = p.probabilities;
  if (!result.class_name.empty()) line["class"] = result.class_name;
  if (head == Head::survival) {
    line["risk"] = p.risk;
    line["hazards"] = p.probabilities;
  }
  if (embedding) line["embedding"] = p.embedding;
  line["regions"] = p.regions;
  line["regions_left"] = p.regions_left;
  line["mpp"] = result.slide.mpp > 0.0 ? nlohmann::ordered_json(result.slide.mpp) : nlohmann::ordered_json();
  line["mpp_source"] = result.slide.mpp_source;
  line["windows"] = result.windows;
  line["windows_skipped"] = result.skipped;
  line["bad_tiles"] = result.slide.bad_tiles;
  line["seconds"] = {{"read", result.read_seconds}, {"compute", result.compute_seconds}};
  // Names in a table may be in an older encoding; JSON is UTF-8.
  fmt::print("{}\n", line.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
}

void print_text(const SlideResult& result, Head head) {
  const Prediction& p = result.prediction;
  const io::SlideImage& slide = result.slide;
  fmt::print("{}\n", result.row.slide_id);
  fmt::print("  read        {} x {} pixels{}, {:.1f} s\n", slide.image.width, slide.image.height,
             slide.mpp > 0.0 ? fmt::format(" at {:g} um per pixel ({})", slide.mpp, slide.mpp_source)
                             : std::string(" as they are (no physical resolution)"),
             result.read_seconds);
  fmt::print("  regions     {}, {} left after fusion, {:.1f} s\n", p.regions, p.regions_left, result.compute_seconds);
  if (result.skipped > 0)
    fmt::print("  background  {} of {} windows without tissue skipped\n", result.skipped, result.windows);
  if (head == Head::classification) {
    const int64_t best = best_class(p);
    const std::string number = fmt::format("{} of {}", best, p.probabilities.size());
    const bool named = !result.class_name.empty() && result.class_name != std::to_string(best);
    fmt::print("  prediction  class {}, probability {:.4f}\n",
               named ? fmt::format("{} (number {})", result.class_name, number) : number,
               p.probabilities[static_cast<size_t>(best)]);
  }
  if (head == Head::survival) fmt::print("  risk        {:.4f} (higher is worse)\n", p.risk);
  fmt::print("  embedding   {} values, first {:.4f} {:.4f} {:.4f}\n", p.embedding.size(), p.embedding[0],
             p.embedding[1], p.embedding[2]);
}

std::string predictions_csv(const std::vector<SlideResult>& results, const ModelConfig& config) {
  std::string text = "slide_id,case_id,path,width,height,mpp,mpp_source,regions,regions_left,bad_tiles,windows_skipped";
  const bool named =
      std::any_of(results.begin(), results.end(), [](const SlideResult& result) { return !result.class_name.empty(); });
  if (config.head == Head::classification) text += named ? ",prediction,class" : ",prediction";
  if (config.head == Head::survival) text += ",risk";
  const char* prefix = config.head == Head::survival ? "hazard" : "p";
  for (int64_t i = 0; i < config.num_classes; ++i) text += fmt::format(",{}_{}", prefix, i);
  text += "\n";
  for (const SlideResult& result : results) {
    const Prediction& p = result.prediction;
    text += fmt::format("{},{},{},{},{},{},{},{},{},{},{}", io::csv_field(result.row.slide_id),
                        io::csv_field(result.row.case_id), io::csv_field(result.row.path), result.slide.image.width,
                        result.slide.image.height, result.slide.mpp > 0.0 ? fmt::format("{:g}", result.slide.mpp) : "",
                        result.slide.mpp_source, p.regions, p.regions_left, result.slide.bad_tiles, result.skipped);
    if (config.head == Head::classification) text += fmt::format(",{}", best_class(p));
    if (named) text += "," + io::csv_field(result.class_name);
    if (config.head == Head::survival) text += fmt::format(",{:.9g}", p.risk);
    for (const double probability : p.probabilities) text += fmt::format(",{:.9g}", probability);
    text += "\n";
  }
  return text;
}

void write_results(const std::string& folder, const std::vector<SlideResult>& results, const ModelConfig& config) {
  const int64_t channels = config.embedding_channels();
  std::vector<float> embeddings;
  std::string ids = "slide_id\n";
  for (const SlideResult& result : results) {
    embeddings.insert(embeddings.end(), result.prediction.embedding.begin(), result.prediction.embedding.end());
    ids += io::csv_field(result.row.slide_id) + "\n";
  }
  io::make_folder(folder);
  io::write_npy(folder + "/embeddings.npy", embeddings, static_cast<int64_t>(results.size()), channels);
  io::write_file_atomically(folder + "/embeddings_ids.csv", ids);
  io::write_file_atomically(folder + "/predictions.csv", predictions_csv(results, config));
  fmt::print(stderr, "wrote {0}/predictions.csv, {0}/embeddings.npy ({1} x {2}, float32) and {0}/embeddings_ids.csv\n",
             folder, results.size(), channels);
}

// Before any slide is read: nobody wants to learn at the end that the results have no place.
void check_can_hold_results(const std::string& folder) {
  namespace fs = std::filesystem;
  fs::path existing = fs::absolute(folder);
  while (!fs::exists(existing) && existing.has_relative_path()) existing = existing.parent_path();
  PM_CHECK(fs::is_directory(existing), IoError, "--out {}: {} is a file, a folder is needed", folder,
           existing.string());
  PM_CHECK(::access(existing.c_str(), W_OK) == 0, IoError, "--out {}: {} cannot be written to: {}", folder,
           existing.string(), std::strerror(errno));
}

// As the model was trained, unless an option says otherwise; what that comes to is said on stderr.
Reading reading_for(const InferOptions& options, const ModelConfig& config) {
  const std::optional<io::Preprocessing> trained =
      is_model_name(options.model) ? std::nullopt : io::read_preprocessing(options.model);
  Reading reading;
  reading.read.slide_mpp = options.slide_mpp;
  reading.read.mpp = options.mpp.value_or(trained ? trained->mpp : reading.read.mpp);
  reading.keep_background =
      options.keep_background || (!options.skip_background && (!trained || trained->keep_background));
  if (trained) reading.class_names = trained->class_names;
  PM_CHECK(reading.class_names.empty() || static_cast<int64_t>(reading.class_names.size()) == config.num_classes,
           IoError, "{}/preprocessing.json: class_names: {} names, but the network has {} outputs", options.model,
           reading.class_names.size(), config.num_classes);
  if (!trained) {
    if (!reading.keep_background) fmt::print(stderr, "windows without tissue are skipped\n");
    return reading;
  }
  fmt::print(stderr, "slides at {:g} um per pixel, windows without tissue {}: {}\n", reading.read.mpp,
             reading.keep_background ? "kept" : "skipped",
             reading.read.mpp == trained->mpp && reading.keep_background == trained->keep_background
                 ? "as the model was trained"
                 : fmt::format("warning: the model was trained at {:g} um per pixel, with them {}", trained->mpp,
                               trained->keep_background ? "kept" : "skipped"));
  return reading;
}

int run_infer(const InferOptions& options) {
  if (!options.out.empty()) check_can_hold_results(options.out);
  const std::vector<io::SlideRow> rows = io::list_slides(options.input);
  const auto ctx = make_context(options.run);
  const PixelMamba model = load_model(*ctx, options.model, options.run);
  const Reading reading = reading_for(options, model.config());
  const Head head = model.config().head;
  int64_t windows = 0, skipped = 0;
  std::vector<SlideResult> results;
  std::string failures;
  bool out_of_memory = false;
  std::optional<Progress> progress;
  if (rows.size() > 1) progress.emplace("slides", static_cast<int64_t>(rows.size()));
  for (size_t i = 0; i < rows.size(); ++i) {
    try {
      results.push_back(infer_one(*ctx, model, rows[i], reading));
      windows += results.back().windows;
      skipped += results.back().skipped;
      if (results.back().no_tissue)
        fmt::print(stderr, "note: {}: no tissue by its colours, all windows are kept\n", rows[i].path);
      if (options.run.json) {
        print_json(results.back(), head, options.embedding);
      } else {
        print_text(results.back(), head);
      }
      if (results.back().slide.bad_tiles > 0) {
        fmt::print(stderr, "warning: {}: {} of {} tiles cannot be decoded and count as white\n", rows[i].path,
                   results.back().slide.bad_tiles, results.back().slide.tiles);
      }
      std::fflush(stdout);
    } catch (const IoError& error) {
      if (rows.size() == 1) throw;
      failures += fmt::format("\n  {}", error.what());  // a broken slide costs that slide
    } catch (const OutOfMemoryError& error) {
      if (rows.size() == 1) throw;
      failures += fmt::format("\n  {}: {}", rows[i].path, error.what());  // and so does one that is too large
      out_of_memory = true;
    }
    if (progress) progress->update(static_cast<int64_t>(i + 1), rows[i].slide_id);
  }
  progress.reset();
  if (skipped > 0)
    fmt::print(stderr, "{} of {} windows have no tissue and were skipped (--keep-background keeps them)\n", skipped,
               windows);
  if (results.empty() && out_of_memory) throw OutOfMemoryError(fmt::format("no slide gave a prediction:{}", failures));
  PM_CHECK(!results.empty(), IoError, "no slide gave a prediction:{}", failures);
  if (!options.out.empty()) write_results(options.out, results, model.config());
  if (failures.empty()) return kDone;
  fmt::print(stderr, "error: {} of {} slides gave no prediction:{}\n", rows.size() - results.size(), rows.size(),
             failures);
  if (out_of_memory) fmt::print(stderr, "a coarser --mpp needs less memory\n");
  return out_of_memory ? kOutOfResources : kRejected;
}

}  // namespace

void add_infer(CLI::App& app, Command& command) {
  auto options = std::make_shared<InferOptions>();
  CLI::App* verb = app.add_subcommand("infer",
                                      "Predict: slide or image (or a folder, or a CSV table with a column path) in, "
                                      "prediction and embedding out");
  verb->add_option("INPUT", options->input, "slide, image, folder of them, or CSV table with a column path (and mpp)")
      ->required();
  verb->add_option("--model", options->model, "model folder, or 6m / 21m / nano for random weights from --seed")
      ->capture_default_str()
      ->type_name("MODEL");
  verb->add_option("--out", options->out, "folder for predictions.csv, embeddings.npy and embeddings_ids.csv")
      ->type_name("DIR");
  verb->add_option(
          "--mpp", options->mpp,
          "micrometres per pixel the network sees (4 is about 2.5x); default: as the model was trained, else 4")
      ->check(positive_number())
      ->type_name("UM");
  verb->add_option("--slide-mpp", options->slide_mpp,
                   "micrometres per pixel of the full-size slide, for files that do not say it (0.25 is about 40x)")
      ->check(positive_number())
      ->type_name("UM");
  CLI::Option* keep = verb->add_flag("--keep-background", options->keep_background,
                                     "show the network windows without tissue too; default: as the model was trained");
  verb->add_flag("--skip-background", options->skip_background, "skip windows without tissue")->excludes(keep);
  verb->add_flag("--embedding", options->embedding, "with --json: the embedding too");
  add_run_options(*verb, options->run);
  verb->callback([options, &command] { command.exit_code = run_infer(*options); });
}

}  // namespace pm::app
