#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "engine/core/error.h"
#include "io/report/page.h"
#include "io/slide/image.h"
#include "tests/report/sample_run.h"
#include "tests/support/test.h"

namespace pm::test {
namespace {

namespace fs = std::filesystem;

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

size_t count(const std::string& text, const std::string& part) {
  size_t found = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + part.size())) ++found;
  return found;
}

std::string read_text(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

}  // namespace

TEST_CASE("a report is one page with its plots beside it", "[cpu]") {
  const TempDir folder;
  io::RunReport run = sample_survival_run();
  run.confusion = sample_staging_run().confusion;
  io::write_report(folder.path(), run);
  for (const char* name : {"report.html", "training_curves.svg", "kaplan_meier.svg", "confusion.svg"}) {
    CAPTURE(name);
    CHECK(fs::file_size(folder.path() + "/" + name) > 1000);
  }
  CHECK(std::distance(fs::directory_iterator(folder.path()), fs::directory_iterator{}) == 4);
  const std::string page = read_text(folder.path() + "/report.html");
  CHECK(page == io::report_html(run));
  for (const char* text :
       {"Survival from tumour slides", "0.665 ± 0.035", "0.608 to 0.713", "12 steps were skipped",
        "TCGA-A2-A078-01Z-00-DX1", "no picture", "the file is cut off", "/data/cohort_240/slides/S-0199.ndpi",
        "Fold 3, held out", "27.9 to 52.3", "11 cases have two slides", "AdamW, weight decay 0.05",
        "<span>--splits</span>", "21.4 GB", "Number at risk", "2 left out, 1 used in part", "120 cases"}) {
    CAPTURE(text);
    CHECK(contains(page, text));
  }
  CHECK(count(page, "data:image/jpeg;base64,/9j/") == 7);
  // Nothing from elsewhere, nothing that runs.
  CHECK(count(page, "<script") + count(page, "<link") + count(page, "url(") + count(page, "@import") == 0);
  CHECK(count(page, " src=\"") == count(page, " src=\"data:"));
  CHECK(count(page, " href=\"") == count(page, " href=\"#"));
}

TEST_CASE("parts that are empty are left out of the report", "[cpu]") {
  const TempDir folder;
  io::write_report(folder.path(), {});
  CHECK(std::distance(fs::directory_iterator(folder.path()), fs::directory_iterator{}) == 1);
  const std::string page = read_text(folder.path() + "/report.html");
  CHECK(contains(page, "No held-out result yet."));
  CHECK_FALSE(contains(page, "<h2"));
  CHECK_FALSE(contains(page, "<table"));
  CHECK_THROWS_AS(io::write_report(folder.path() + "/missing", {}), IoError);
}

TEST_CASE("the verdict says what the numbers allow", "[cpu]") {
  io::RunReport run = sample_survival_run();
  CHECK(io::page::verdict(run) ==
        "Concordance index 0.665 ± 0.035 (mean ± standard deviation of 4 folds). Better than chance: the 95 % interval "
        "over held-out cases, "
        "0.608 to 0.713, lies above 0.5.");
  run.metrics[0].ci_low = 0.49;
  CHECK(contains(io::page::verdict(run), "Not told apart from chance"));
  run.metrics[0].ci_high = 0.495;
  CHECK(contains(io::page::verdict(run), "Worse than chance"));
  run = sample_staging_run();
  CHECK(contains(io::page::verdict(run), "Macro F1 0.415 ± 0.035 (mean ± standard deviation of 2 folds)."));
  CHECK(contains(io::page::verdict(run), "2 of 5 folds are done. 1 fold failed."));
  run.folds[0].metrics[0] = std::nan("");
  CHECK(contains(io::page::verdict(run), "Macro F1 0.390 on held-out cases of one fold."));
  run.verdict = "As the caller says.";
  CHECK(io::page::verdict(run) == "As the caller says.");
}

TEST_CASE("mean and deviation are over the folds that are done", "[cpu]") {
  const metrics::Summary summary = io::page::summarize(sample_survival_run(), 0);
  CHECK(summary.n == 4);
  CHECK(summary.mean == Approx(0.665).epsilon(1e-12));
  CHECK(summary.deviation ==
        Approx(std::sqrt((0.023 * 0.023 + 0.024 * 0.024 + 0.037 * 0.037 + 0.036 * 0.036) / 3.0)).epsilon(1e-12));
  io::RunReport run = sample_staging_run();
  run.folds[3].metrics = {0.99};  // still running
  CHECK(io::page::summarize(run, 0).n == 2);
  CHECK(io::page::summarize(run, 7).n == 0);
}

TEST_CASE("no text of a table reaches the page as markup", "[cpu]") {
  const std::string bad = kHostileText;
  io::RunReport run = sample_survival_run();
  run.confusion = io::ConfusionMatrix{{bad, bad}, {{1, 2}, {3, 4}}};
  run.title = run.verdict = run.command_line = bad;
  for (auto& metric : run.metrics) metric.name = bad;
  for (auto& fold : run.folds) fold.name = fold.note = bad;
  run.warnings = {bad};
  for (auto* entries : {&run.settings, &run.versions}) {
    for (auto& entry : *entries) entry = {bad, bad};
  }
  run.cohort->table = bad;
  run.cohort->count_names = {bad};
  run.cohort->remarks = {bad};
  for (auto& row : run.cohort->rows) row.name = bad;
  for (auto& curves : run.curves) curves.fold = bad;
  run.kaplan_meier->note = run.kaplan_meier->time_unit = bad;
  for (auto& curve : run.kaplan_meier->curves) curve.name = bad;
  for (auto& slide : run.worst_slides)
    slide.slide_id = slide.case_id = slide.fold = slide.truth = slide.prediction = bad;
  for (auto& problem : run.slide_problems) problem.slide_id = problem.path = problem.reason = bad;
  const TempDir folder;
  io::write_report(folder.path(), run);
  for (const auto& entry : fs::directory_iterator(folder.path())) {
    const std::string text = read_text(entry.path().string());
    CAPTURE(entry.path().filename().string());
    CHECK_FALSE(contains(text, "<script"));
    CHECK_FALSE(contains(text, "<img src=x"));
    CHECK(text.find('\x01') == std::string::npos);
    CHECK(text.find('\xFF') == std::string::npos);
  }
  CHECK(contains(read_text(folder.path() + "/report.html"), "&lt;/title&gt;&lt;/style&gt;&lt;script&gt;"));
}

TEST_CASE("thumbnails keep shape and colour", "[cpu]") {
  std::vector<uint8_t> rgb;
  for (int64_t y = 0; y < 300; ++y) {
    for (int64_t x = 0; x < 1000; ++x) {
      const bool left = x < 500;
      rgb.insert(rgb.end(), {static_cast<uint8_t>(left ? 200 : 40), static_cast<uint8_t>(left ? 60 : 150), 100});
    }
  }
  const io::Thumbnail thumbnail = io::make_thumbnail(rgb.data(), 1000, 300, 200);
  CHECK(thumbnail.width == 200);
  CHECK(thumbnail.height == 60);
  const io::Image image = io::decode_image(thumbnail.jpeg, "thumbnail");
  REQUIRE(image.width == 200);
  REQUIRE(image.height == 60);
  const auto pixel = [&](int64_t x, int64_t y, int64_t c) {
    return int{image.rgb[static_cast<size_t>((y * 200 + x) * 3 + c)]};
  };
  CHECK(std::abs(pixel(30, 30, 0) - 200) < 6);
  CHECK(std::abs(pixel(170, 30, 1) - 150) < 6);
  const io::Thumbnail dot = io::make_thumbnail(rgb.data(), 1, 300, 20);  // a side never becomes zero
  CHECK(dot.width == 1);
  CHECK(dot.height == 20);
  CHECK(io::make_thumbnail(rgb.data(), 7, 5).width == 7);  // never enlarged
  CHECK_THROWS_AS(io::make_thumbnail(rgb.data(), 0, 5), ShapeError);
}

TEST_CASE("base64 gives the examples of RFC 4648", "[cpu]") {
  const std::vector<std::pair<std::string, std::string>> examples = {{"", ""},
                                                                     {"f", "Zg=="},
                                                                     {"fo", "Zm8="},
                                                                     {"foo", "Zm9v"},
                                                                     {"foob", "Zm9vYg=="},
                                                                     {"fooba", "Zm9vYmE="},
                                                                     {"foobar", "Zm9vYmFy"}};
  for (const auto& [bytes, text] : examples) CHECK(io::page::base64(bytes) == text);
  CHECK(io::page::base64("\xFB\xFF\xFE") == "+//+");
}

}  // namespace pm::test
