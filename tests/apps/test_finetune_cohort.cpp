// What a fine-tune makes of tables, splits and slides: the dry run, what it refuses, what it leaves out.
#include <fmt/format.h>

#include <filesystem>
#include <fstream>
#include <map>

#include "apps/finetune_cohort.h"
#include "apps/finetune_report.h"
#include "io/data/csv.h"
#include "io/slide/image.h"
#include "tests/apps/run_program.h"
#include "tests/apps/small_runs.h"
#include "tests/support/test.h"

namespace pm::test {
namespace {

namespace fs = std::filesystem;

void write_text(const std::string& path, const std::string& text) { std::ofstream(path) << text; }

// Pictures stripes0.png .. and a small model.
class Folder {
 public:
  explicit Folder(int pictures) {
    for (int i = 0; i < pictures; ++i) write_stripes(path(), i);
    write_small_model(path("init"), Head::classification, 2);
  }
  const std::string& path() const { return dir_.path(); }
  std::string path(const std::string& name) const { return dir_.path() + "/" + name; }
  Outcome finetune(const std::string& arguments) const {
    return run_program(
        fmt::format("finetune {} --device cpu --init {} {}", path("table.csv"), path("init"), arguments));
  }

 private:
  TempDir dir_;
};

std::string survival_table(int cases) {
  std::string text = "case_id,slide_id,path,survival_months,censorship\n";
  for (int i = 0; i < cases; ++i) text += fmt::format("c{0},s{0},stripes{0}.png,{1},{2}\n", i, 3 + 2 * i, i % 2);
  return text;
}

}  // namespace

TEST_CASE("the dry run prints the label audit and writes nothing", "[cpu]") {
  const Folder folder(8);
  write_text(folder.path("table.csv"), survival_table(8));
  const Outcome text = folder.finetune("--check --folds 2");
  CAPTURE(text.out, text.err);
  CHECK(text.code == 0);
  CHECK(contains(text.out, "8 slides of 8 cases"));
  CHECK(contains(text.out, "4 events"));
  CHECK(contains(text.out, "fold 1: time bins cut at"));
  CHECK(contains(text.out, "read as they are"));
  CHECK(contains(text.out, "a run would start, with every slide"));

  const Outcome json = folder.finetune("--check --folds 2 --json --slide-mpp 4");
  const std::vector<Json> lines = json_lines(json.out);
  REQUIRE(lines.size() == 4);  // the table, two folds, the verdict
  CHECK(lines[0]["cases"] == 8);
  CHECK(lines[0]["events"] == 4);
  int64_t held_out_events = 0;
  for (const size_t i : {1, 2}) {
    CHECK(lines[i]["train"]["cases"] == 4);
    CHECK(lines[i]["cuts"].size() == 3);
    held_out_events += lines[i]["val"]["events"].get<int64_t>();
  }
  CHECK(held_out_events == 4);
  CHECK(lines[3]["check"] == "pass");
  CHECK(lines[3]["opened"] == 8);
  CHECK(lines[3]["read_as_they_are"] == 0);
  CHECK(lines[3]["largest"]["width"] == 56);
  CHECK_FALSE(fs::exists(folder.path("run")));

  CHECK(folder.finetune("--folds 2").code == 2);  // a real run needs --out
}

TEST_CASE("the dry run tells slides that cost only themselves from what stops a run", "[cpu]") {
  const Folder folder(6);
  std::string table = "case_id,path,label,fold\n";
  for (int i = 0; i < 6; ++i) table += fmt::format("c{0},stripes{0}.png,{1},{2}\n", i, i % 2, i / 3);
  write_text(folder.path("table.csv"), table);
  write_text(folder.path("stripes1.png"), "no picture");
  const Outcome one = folder.finetune("--check --json --splits table");
  CAPTURE(one.out);
  CHECK(one.code == 0);
  CHECK(json_lines(one.out)[3]["slide_id"] == "stripes1");
  CHECK(contains(json_lines(one.out)[3]["error"].get<std::string>(), "stripes1.png"));
  CHECK(json_lines(one.out).back()["failed"] == 1);
  // All training slides of one fold: that fold cannot be trained.
  for (int i = 0; i < 3; ++i) write_text(folder.path(fmt::format("stripes{}.png", i)), "no picture");
  const Outcome fold = folder.finetune("--check --splits table");
  CAPTURE(fold.out);
  CHECK(fold.code == 3);
  CHECK(contains(fold.out, "a run would not start: fold 1: no training slide can be opened"));
  CHECK(contains(fold.out, "fold 0: no held-out slide can be opened"));
  // A run refuses a table with files that are not there, unless asked to leave them out.
  fs::remove(folder.path("stripes0.png"));
  const Outcome gone = folder.finetune("--check");
  CHECK(gone.code == 3);
  CHECK(contains(gone.out, "files that are not there: 1;"));
  CHECK(contains(folder.finetune("--check --skip-missing").out, "a run would start, without the 2 slides"));
  for (int i = 1; i < 6; ++i) write_text(folder.path(fmt::format("stripes{}.png", i)), "");
  CHECK(contains(folder.finetune("--check --skip-missing").out, "a run would not start: no slide can be opened"));
  // Labels of a published table without any slide.
  write_text(folder.path("table.csv"), "case_id,slide_id,survival_months,censorship\na,x.svs,3,0\nb,y.svs,4,1\n");
  const Outcome labels = folder.finetune("--check");
  CAPTURE(labels.out);
  CHECK(labels.code == 3);
  CHECK(contains(labels.out, "1 events"));
  CHECK(contains(labels.out, "--slides DIR"));
}

TEST_CASE("bad tables and splits are refused by the run and by the dry run, before anything is written", "[cpu]") {
  const Folder folder(4);
  const std::string head = "case_id,slide_id,path,label\n", rows = "a,s0,stripes0.png,0\nb,s1,stripes1.png,1\n";
  const std::string survival = "path,survival_months,censorship\n";
  const struct {
    std::string table, splits;
    std::vector<const char*> expected;
  } cases[] = {
      {"", "", {"table.csv", "empty"}},
      {head, "", {"no rows"}},
      {"name,label\nx,1\n", "", {"column 'path'"}},
      {head + "a,s0,stripes0.png\n", "", {"line 2"}},
      {head + "a,s0,\"stripes0.png,0\n", "", {"line 2", "quote"}},
      {"path,label,label\nstripes0.png,1,1\n", "", {"label", "twice"}},
      {"path;label\nstripes0.png;1\n", "", {"separated"}},
      {head + "a,s0,stripes0.png,high\nb,s1,stripes1.png,1\n", "", {"row 1", "column label", "'high'"}},
      {head + "a,s0,stripes0.png,\nb,s1,stripes1.png,1\n", "", {"row 1", "column label"}},
      {head + "a,s0,stripes0.png,-1\n", "", {"row 1", "column label", "-1"}},
      {head + "a,s0,stripes0.png,0.5\n", "", {"row 1", "column label", "0.5"}},
      {head + "a,s0,stripes0.png,0\na,s1,stripes1.png,1\n", "", {"row 2", "case a has another class"}},
      {head + "a,s0,stripes0.png,0\nb,s0,stripes1.png,1\n", "", {"row 2", "slide s0 is there twice"}},
      {head + "a,s0,stripes0.png,0\nb,s1,stripes0.png,1\n", "", {"row 2", "there twice"}},
      {head + ",s0,stripes0.png,0\n", "", {"row 1", "column case_id"}},
      {"path,label,mpp\nstripes0.png,0,fine\n", "", {"row 1", "column mpp", "'fine'"}},
      {"path,label,mpp\nstripes0.png,0,-0.5\n", "", {"row 1", "column mpp", "-0.5"}},
      {"path,survival_months\nstripes0.png,3\n", "", {"censorship"}},
      {survival + "stripes0.png,3,2\n", "", {"row 1", "column censorship", "'2'"}},
      {survival + "stripes0.png,-3,0\n", "", {"row 1", "column survival_months", "-3"}},
      {survival + "stripes0.png,3,1\nstripes1.png,4,1\n", "", {"no event"}},
      {"path\nstripes0.png\n", "", {"nothing to learn"}},
      {head + rows, "train,val\na,\n", {"splits_0.csv", "val"}},
      {head + rows, "train\na\n", {"splits_0.csv", "val"}},
      {head + rows, "train,val\na,z\n", {"splits_0.csv", "row 1", "column val", "no case z"}},
      {head + rows, "train,val\na,b\nb,\n", {"splits_0.csv", "row 2", "two sets"}},
      {head + rows, "train,val,holdout\na,b,\n", {"splits_0.csv", "'holdout'"}},
      {head + rows + "b,s2,stripes2.png,1\n", "train,val\ns0,s2\ns1,\n", {"splits_0.csv", "case b is in two sets"}},
  };
  for (const auto& bad : cases) {
    write_text(folder.path("table.csv"), bad.table);
    std::string splits;
    if (!bad.splits.empty()) {
      write_text(folder.path("splits_0.csv"), bad.splits);
      splits = " --splits " + folder.path("splits_0.csv");
    }
    for (const std::string& mode : {std::string(" --check"), " --out " + folder.path("run")}) {
      const Outcome outcome = folder.finetune(mode + splits);
      CAPTURE(bad.table, bad.splits, mode, outcome.out, outcome.err);
      CHECK(outcome.code == 3);
      for (const char* part : bad.expected) CHECK(contains(outcome.err + outcome.out, part));
      CHECK_FALSE(fs::exists(folder.path("run/checkpoints")));
    }
  }
}

TEST_CASE("survival times cannot be balanced, which a run says before it writes anything", "[cpu]") {
  const Folder folder(2);
  write_text(folder.path("table.csv"), "path,survival_months,censorship\nstripes0.png,3,0\nstripes1.png,4,1\n");
  for (const std::string& mode : {std::string(" --check"), " --out " + folder.path("run")}) {
    const Outcome outcome = folder.finetune("--balance" + mode);
    CAPTURE(mode, outcome.err);
    CHECK(outcome.code == 2);
    CHECK(contains(outcome.err, "--balance"));
    CHECK_FALSE(fs::exists(folder.path("run")));
  }
}

TEST_CASE("how far classes are balanced is asked for by number, or by the option alone", "[cpu]") {
  const Folder folder(4);
  write_text(folder.path("table.csv"), "path,label\nstripes0.png,0\nstripes1.png,1\nstripes2.png,0\nstripes3.png,0\n");
  write_text(folder.path("settings.json"), "{\"balance\": 0.25}");
  for (const auto& [arguments, strength] : {std::pair<std::string, double>{"", 0.0},
                                            {"--balance", 1.0},
                                            {"--balance=0.75", 0.75},
                                            {"--config " + folder.path("settings.json"), 0.25}}) {
    CAPTURE(arguments);
    fs::remove_all(folder.path("run"));
    const Outcome outcome = folder.finetune(arguments + " --stop-after 1 --out " + folder.path("run"));
    CAPTURE(outcome.err);
    REQUIRE(outcome.code == 0);
    CHECK(Json::parse(read_text(folder.path("run/config.json")))["training"]["balance"] == strength);
  }
  CHECK(folder.finetune("--balance=1.5 --check").code == 2);
  CHECK(folder.finetune("--balance=half --check").code == 2);
}

TEST_CASE("a run in which no slide can be read, or too little memory to read one, is no success", "[cpu]") {
  const Folder folder(4);
  write_text(folder.path("table.csv"), "path,label\nstripes0.png,0\nstripes1.png,1\nstripes2.png,0\nstripes3.png,1\n");
  for (const std::string& mode : {std::string(" --check"), " --out " + folder.path("small")}) {
    const Outcome small = folder.finetune("--read-memory 1000" + mode);
    CAPTURE(small.err, small.out);
    CHECK(small.code == 4);
    CHECK(contains(small.err + small.out, "--read-memory"));
    CHECK_FALSE(fs::exists(folder.path("small")));
  }
  for (int i = 0; i < 4; ++i) {  // they open, then break off
    const std::string path = folder.path(fmt::format("stripes{}.png", i));
    fs::resize_file(path, fs::file_size(path) / 2);
  }
  const Outcome none = folder.finetune("--epochs 1 --out " + folder.path("run"));
  CAPTURE(none.err);
  CHECK(none.code == 3);
  CHECK(contains(none.err, "none of the 4 training slides could be read"));
  CHECK_FALSE(fs::exists(folder.path("run/model")));
}

TEST_CASE("a broken slide in a cohort of 50 costs only itself and is in the report", "[cpu]") {
  const Folder folder(50);
  std::string table = "path,label\n";
  for (int i = 0; i < 50; ++i) table += fmt::format("stripes{}.png,{}\n", i, i % 2);
  write_text(folder.path("table.csv"), table);
  write_text(folder.path("stripes17.png"), "damaged");
  fs::resize_file(folder.path("stripes20.png"),
                  fs::file_size(folder.path("stripes20.png")) / 2);  // opens, then breaks off
  const Outcome outcome = folder.finetune("--folds 2 --epochs 1 --out " + folder.path("run"));
  CAPTURE(outcome.err);
  REQUIRE(outcome.code == 0);
  CHECK(contains(outcome.err, "slide stripes17 is left out"));
  CHECK(contains(outcome.err, "slide stripes20 is left out"));
  int64_t lines = 0;
  const std::string predictions = read_text(folder.path("run/slide_predictions.csv"));
  for (const char c : predictions) lines += c == '\n' ? 1 : 0;
  CHECK(lines == 49);  // the names and 48 slides
  CHECK_FALSE(contains(predictions, "stripes17,"));
  const std::string report = read_text(folder.path("run/report.html"));
  CHECK(contains(report, "Slides with problems"));
  CHECK(contains(report, "2 left out"));
  CHECK(contains(report, folder.path("stripes17.png")));
  CHECK(contains(report, folder.path("stripes20.png")));
  CHECK(contains(report, "Whole cohort"));
}

TEST_CASE("the worst slides are in the report with pictures of bounded size", "[cpu]") {
  const Folder folder(9);
  io::Image large{1900, 1300, {}};
  large.rgb.assign(1900 * 1300 * 3, 255);
  for (size_t i = 0; i < large.rgb.size(); ++i)
    large.rgb[i] = static_cast<uint8_t>(i * 2654435761U >> 13);  // hard to compress
  io::write_png(folder.path("stripes0.png"), large);
  std::string table = "case_id,path,label\n";
  for (int i = 0; i < 9; ++i) table += fmt::format("c{0},stripes{0}.png,{1}\n", i, i % 2 ? "mild" : "severe");
  write_text(folder.path("table.csv"), table);
  const std::string arguments = "--folds 2 --epochs 1 --slide-mpp 1 --mpp 8 --out " + folder.path("run");
  REQUIRE(folder.finetune(arguments).code == 0);
  const std::string report = read_text(folder.path("run/report.html"));
  const auto pictures = [](const std::string& page) {
    int64_t count = 0;
    for (size_t at = 0; (at = page.find("data:image/jpeg;base64,", at)) != page.npos; ++at) ++count;
    return count;
  };
  CHECK(pictures(report) == 8);
  CHECK(report.size() < 1'000'000);
  CHECK(contains(report, "true: severe"));
  // A slide that is gone in the meantime has its row without a picture.
  app::FinetuneOptions options;
  options.table = folder.path("table.csv");
  options.out = folder.path("run");
  const io::Cohort cohort = app::read_training_cohort(options);
  for (int i = 1; i < 9; ++i) fs::remove(folder.path(fmt::format("stripes{}.png", i)));
  app::write_run_report(options, {cohort,
                                  {},
                                  {{"0", options.out + "/fold-0"}, {"1", options.out + "/fold-1"}},
                                  Json::object(),
                                  Json::object(),
                                  {}});
  const std::string without = read_text(folder.path("run/report.html"));
  CHECK(pictures(without) <= 1);  // stripes0 is there still
  CHECK(contains(without, "no picture"));
  CHECK(contains(without, "true: severe"));
}

TEST_CASE("infer treats slides as the model's training did, unless it is told otherwise", "[cpu]") {
  const Folder folder(0);
  std::string table = "case_id,path,label\n";
  for (int i = 0; i < 6; ++i) {  // a stained square on glass
    io::Image image{320, 256, std::vector<uint8_t>(320 * 256 * 3, 245)};
    for (int64_t y = 40; y < 200; ++y) {
      for (int64_t x = 10 + 20 * i; x < 170 + 20 * i; ++x) {
        uint8_t* pixel = image.rgb.data() + (y * 320 + x) * 3;
        pixel[0] = static_cast<uint8_t>(180 + x * y % 40);
        pixel[1] = static_cast<uint8_t>(90 + 10 * i);
        pixel[2] = 160;
      }
    }
    io::write_png(folder.path(fmt::format("s{}.png", i)), image);
    table += fmt::format("c{0},s{0}.png,{1}\n", i, i % 2);
  }
  write_text(folder.path("table.csv"), table);
  const std::string run = folder.path("run"), model = run + "/fold-0/model";
  REQUIRE(folder.finetune("--folds 2 --epochs 1 --slide-mpp 1 --mpp 2 --out " + run).code == 0);
  REQUIRE(fs::exists(run + "/fold-0/checkpoints/last/preprocessing.json"));
  const auto infer = [&](const std::string& arguments) {
    return run_program(
        fmt::format("infer {} --device cpu --json --slide-mpp 1 {}", folder.path("table.csv"), arguments));
  };
  const Outcome same = infer("--model " + model);
  CAPTURE(same.err);
  REQUIRE(same.code == 0);
  CHECK(contains(same.err, "slides at 2 um per pixel, windows without tissue skipped: as the model was trained"));
  CHECK(contains(same.err, "windows have no tissue and were skipped"));
  // The held-out slides of the fold have the probabilities that the run wrote down.
  std::map<std::string, double> probability;
  for (const Json& line : json_lines(same.out)) {
    CHECK(line["mpp"] == 2.0);
    CHECK(line["windows"] == 80);
    CHECK(line["windows_skipped"] > 0);
    CHECK(line["regions"].get<int64_t>() == 80 - line["windows_skipped"].get<int64_t>());
    probability[line["slide_id"]] = line["probabilities"][0];
  }
  const io::CsvTable held_out = io::read_csv(run + "/fold-0/slide_predictions.csv");
  REQUIRE(held_out.row_count() == 3);
  for (int64_t i = 0; i < 3; ++i) {
    CHECK(std::stod(held_out.at(i, "p_0")) == Approx(probability.at(held_out.at(i, "slide_id"))).epsilon(1e-6));
  }
  const Outcome other = infer("--mpp 4 --keep-background --model " + model);
  CHECK(contains(other.err, "warning: the model was trained at 2 um per pixel, with them skipped"));
  CHECK(json_lines(other.out)[0]["windows_skipped"] == 0);
  CHECK(json_lines(other.out)[0]["mpp"] == 4.0);
  // Without a record of the training all windows are shown, at 4 um per pixel.
  const Outcome plain = infer("--model " + folder.path("init"));
  CHECK(json_lines(plain.out)[0]["windows_skipped"] == 0);
  CHECK(json_lines(plain.out)[0]["mpp"] == 4.0);
  CHECK(json_lines(infer("--skip-background --model " + folder.path("init")).out)[0]["windows_skipped"] > 0);
  write_text(model + "/preprocessing.json", R"({"mpp": 2.0, "colour": "h&e"})");
  const Outcome unknown = infer("--model " + model);
  CHECK(unknown.code == 3);
  CHECK(contains(unknown.err, "preprocessing.json: colour: unknown key"));
}

}  // namespace pm::test
