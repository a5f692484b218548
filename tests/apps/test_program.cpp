// The program as its users meet it: command lines in; exit codes, messages and files out.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>

#include "io/checkpoint/model_folder.h"
#include "io/checkpoint/safetensors.h"
#include "io/slide/image.h"
#include "tests/apps/run_program.h"
#include "tests/apps/small_runs.h"
#include "tests/support/test.h"

namespace pm::test {
namespace {

namespace fs = std::filesystem;

}  // namespace

TEST_CASE("without arguments the program shows worked examples", "[cpu]") {
  const Outcome outcome = run_program("");
  CHECK(outcome.code == 0);
  CHECK(contains(outcome.out, "pixel-mamba infer slide.svs"));
}

TEST_CASE("wrong command lines end with exit code 2 and the nearest valid option", "[cpu]") {
  CHECK(run_program("infer").code == 2);
  const Outcome device = run_program("infer x.png --device tpu");
  CHECK(device.code == 2);  // before the missing file
  CHECK(contains(device.err, "cuda:i"));
  CHECK(run_program("infer x.png --seed -1").code == 2);
  CHECK(run_program("infer x.png --mpp nan").code == 2);
  const Outcome option = run_program("infer x.png --modle 6m");
  CHECK(option.code == 2);
  CHECK(contains(option.err, "did you mean --model"));
  const Outcome verb = run_program("infre x.png");
  CHECK(verb.code == 2);
  CHECK(contains(verb.err, "did you mean infer"));
  CHECK(contains(run_program("train slides.csv").err, "the verbs are: infer pretrain finetune"));
  const Outcome far = run_program("infer x.png --quiet");
  CHECK(far.code == 2);
  CHECK(contains(far.err, "the options of infer are:"));
  CHECK(contains(far.err, "--slide-mpp"));
  const Outcome negative = run_program("infer x.png --mpp -1");
  CHECK(negative.code == 2);
  CHECK(contains(negative.err, "a number above 0 is needed, got -1"));
  CHECK(run_program("verify x --device cuda:99").code == 2);
}

TEST_CASE("rejected input ends with exit code 3 and names the file", "[cpu]") {
  const TempDir folder;
  std::ofstream(folder.path() + "/notes.svs") << "this is text\n";
  std::ofstream(folder.path() + "/empty.svs");
  for (const std::string name : {"missing.svs", "notes.svs", "empty.svs"}) {
    const std::string out = folder.path() + "/result";
    const Outcome outcome = run_program("infer " + folder.path() + "/" + name + " --device cpu --out " + out);
    CAPTURE(name, outcome.err);
    CHECK(outcome.code == 3);
    CHECK(contains(outcome.err, name));
    CHECK_FALSE(fs::exists(out));
  }
  CHECK(run_program("infer " + folder.path() + "/notes.svs --model nowhere --device cpu").code == 3);
  CHECK(run_program("verify " + folder.path() + " --device cpu").code == 3);
  CHECK(run_program("inspect " + folder.path() + "/missing").code == 3);
  CHECK(contains(run_program("inspect " + folder.path()).err, "is no model folder"));
}

TEST_CASE("results without a place are refused before any slide is read", "[cpu]") {
  const TempDir folder;
  std::ofstream(folder.path() + "/file") << "taken\n";
  const std::string slide = write_stripes(folder.path(), 0);
  const Outcome outcome = run_program("infer " + slide + " --device cpu --out " + folder.path() + "/file/result");
  CHECK(outcome.code == 3);
  CHECK(outcome.out.empty());
  CHECK(contains(outcome.err, "/file is a file, a folder is needed"));
  CHECK(read_text(folder.path() + "/file") == "taken\n");
  if (fs::exists("/dev/full")) {  // a full disk
    CHECK(WEXITSTATUS(std::system((std::string(PM_PROGRAM) + " inspect 6m >/dev/full 2>/dev/null").c_str())) == 4);
  }
}

TEST_CASE("names in another encoding do not stop a table", "[cpu]") {
  const TempDir folder;
  const std::string model = write_small_model(folder.path() + "/model", Head::survival, 4);
  write_stripes(folder.path(), 0);
  std::ofstream(folder.path() + "/TABLE.CSV") << "slide_id,path\nM\xfcller,stripes0.png\n";
  const Outcome outcome = run_program("infer " + folder.path() + "/TABLE.CSV --device cpu --json --model " + model);
  CAPTURE(outcome.err);
  REQUIRE(outcome.code == 0);
  CHECK(json_lines(outcome.out).at(0)["slide_id"] == "M\xef\xbf\xbdller");
}

TEST_CASE("verify passes on the golden models and fails on a damaged one", "[cpu][golden]") {
  for (const std::string name : {"nano_single", "nano_fusion", "nano_survival"}) {
    for (const std::string precision : {"fp32", "fp64"}) {
      const Outcome outcome =
          run_program("verify " + golden_dir() + "/" + name + " --device cpu --json --precision " + precision);
      CAPTURE(name, precision, outcome.err);
      CHECK(outcome.code == 0);
      const std::vector<Json> lines = json_lines(outcome.out);
      REQUIRE(lines.size() > 5);
      CHECK(lines.back()["verify"] == "pass");
    }
  }
  const TempDir folder;
  fs::copy(golden_dir() + "/nano_single", folder.path(),
           fs::copy_options::recursive | fs::copy_options::overwrite_existing);
  std::string config = read_text(folder.path() + "/config.json");
  const std::string key = "\"norm_eps\": 1e-05";
  REQUIRE(contains(config, key));
  std::ofstream(folder.path() + "/config.json") << config.replace(config.find(key), key.size(), "\"norm_eps\": 1e-01");
  const Outcome damaged = run_program("verify " + folder.path() + " --device cpu --json");
  CHECK(damaged.code != 0);
  CHECK(json_lines(damaged.out).back()["verify"] == "fail");
}

TEST_CASE("verify finds a single changed value of any reference and names the worst tensor", "[cpu][golden]") {
  const std::string golden = golden_dir() + "/nano_single/";
  const TempDir folder;
  fs::copy(golden, folder.path(), fs::copy_options::recursive | fs::copy_options::overwrite_existing);
  // Runs verify with one of the four files replaced by `tensors`.
  const auto verify = [&](const std::string& file, const std::map<std::string, Tensor>& tensors) {
    io::write_safetensors(folder.path() + "/" + file, tensors);
    Outcome outcome = run_program("verify " + folder.path() + " --device cpu --json");
    fs::copy(golden + file, folder.path() + "/" + file, fs::copy_options::overwrite_existing);
    return outcome;
  };
  const auto fails_with = [&](const std::string& name, const std::function<float(float)>& change) {
    auto expected = io::read_safetensors(cpu(), golden + "expected.safetensors");
    std::vector<float> values = expected.at(name).to_host<float>();
    const size_t largest = static_cast<size_t>(
        std::max_element(values.begin(), values.end(), [](float a, float b) { return std::abs(a) < std::abs(b); }) -
        values.begin());
    values[largest] = change(values[largest]);
    expected.at(name) = Tensor::from_host(cpu(), expected.at(name).shape(), values);
    const Outcome outcome = verify("expected.safetensors", expected);
    CAPTURE(name, outcome.err);
    CHECK(outcome.code == 1);
    const Json last = json_lines(outcome.out).back();
    CHECK(last["verify"] == "fail");
    CHECK(last["worst"] == name);
  };
  for (const std::string name : {"logits", "embedding", "loss", "grad.image", "grad.layers.3.mixer.A_log"}) {
    fails_with(name, [](float value) { return -value; });
    fails_with(name, [](float) { return std::numeric_limits<float>::quiet_NaN(); });
    fails_with(name, [](float) { return std::numeric_limits<float>::infinity(); });
  }
  auto expected = io::read_safetensors(cpu(), golden + "expected.safetensors");
  expected["grad.layers.99.norm.weight"] = expected.at("grad.layers.0.norm.weight");
  CHECK(verify("expected.safetensors", expected).code == 1);
  expected = io::read_safetensors(cpu(), golden + "expected.safetensors");
  Tensor& weight = expected.at("grad.layers.0.mixer.in_proj.weight");
  const std::vector<float> values = weight.to_host<float>();
  weight = Tensor::from_host(cpu(), {weight.shape()[1], weight.shape()[0]}, values);
  CHECK(verify("expected.safetensors", expected).code == 1);

  auto input = io::read_safetensors(cpu(), golden + "input.safetensors");
  std::vector<int64_t> labels = input.at("label").to_host<int64_t>();
  labels.back() = 99;
  input.at("label") = Tensor::from_host(cpu(), input.at("label").shape(), labels);
  const Outcome label = verify("input.safetensors", input);
  CHECK(label.code == 3);
  CHECK(contains(label.err, "'label' must be 0..4, got 99"));
  input.erase("label");
  CHECK(verify("input.safetensors", input).code == 3);
  CHECK(contains(run_program("verify " + golden_dir() + " --device cpu").err, "is no golden folder"));
}

TEST_CASE("inspect describes models, weights and slides", "[cpu]") {
  const Json large = json_lines(run_program("inspect 21m --json").out).at(0);
  CHECK(large["parameters"] == 21'328'186);
  CHECK(large["memory"]["cuda"]["bf16"]["training_bytes"] < large["memory"]["cuda"]["tf32"]["training_bytes"]);
  CHECK(json_lines(run_program("inspect 21m --json --batch 2").out).at(0)["memory"]["cpu"]["fp32"]["inference_bytes"] >
        large["memory"]["cpu"]["fp32"]["inference_bytes"]);
  CHECK(json_lines(run_program("inspect nano --json --size 64 --region-size 16").out).at(0)["regions"] == 16);
  CHECK(run_program("inspect nano --region-size 15").code == 3);
  const std::string golden = golden_dir() + "/nano_fusion";
  const int64_t parameters = json_lines(run_program("inspect " + golden + " --json").out).at(0)["parameters"];
  CHECK(json_lines(run_program("inspect " + golden + "/config.json --json").out).at(0)["parameters"] == parameters);
  CHECK(json_lines(run_program("inspect " + golden + "/model.safetensors --json").out).at(0)["parameters"] ==
        parameters);
  const TempDir folder;
  const std::string slide = folder.path() + "/cohort/slides/case-001.tif";
  REQUIRE(run_program("synth " + folder.path() + "/cohort --cases 2 --folds 2 --size 700x650 --mpp 1").code == 0);
  const Json info = json_lines(run_program("inspect " + slide + " --json").out).at(0);
  CHECK(info["width"] == 700);
  CHECK(info["mpp"] == 1.0);
}

TEST_CASE("synth says what it wrote and refuses what makes no cohort", "[cpu]") {
  const TempDir folder;
  const std::string cohort = folder.path() + "/cohort";
  const std::string command = "synth " + cohort + " --cases 4 --folds 2 --size 640x600 --seed 3";
  const Outcome outcome = run_program(command + " --json");
  CAPTURE(outcome.err);
  REQUIRE(outcome.code == 0);
  const Json line = json_lines(outcome.out).at(0);
  CHECK(line["cases"] == 4);
  CHECK(line["slides"] == 4);
  CHECK(line["width"] == 640);
  CHECK(line["height"] == 600);
  CHECK(line["seed"] == 3);
  CHECK(line["stages"].size() == 4);
  CHECK(fs::exists(line["table"].get<std::string>()));
  CHECK(fs::exists(line["splits"].get<std::string>() + "/splits_1.csv"));
  const Outcome again = run_program(command);
  CHECK(again.code == 3);
  CHECK(contains(again.err, "not an empty folder"));
  const Outcome size = run_program("synth " + cohort + "2 --size 640");
  CHECK(size.code == 2);
  CHECK(contains(size.err, "WIDTHxHEIGHT"));
  CHECK(run_program("synth " + cohort + "2 --mpp 3").code == 2);
  CHECK(run_program("synth " + cohort + "2 --cases 1").code == 2);
  CHECK_FALSE(fs::exists(cohort + "2"));
}

TEST_CASE("infer writes predictions and embeddings of a slide", "[cpu]") {
  const TempDir folder;
  const std::string slide = folder.path() + "/cohort/slides/case-001.tif", out = folder.path() + "/result";
  const std::string model = write_small_model(folder.path() + "/model", Head::classification, 5);
  REQUIRE(run_program("synth " + folder.path() + "/cohort --cases 2 --folds 2 --size 1300x1200 --mpp 0.5").code == 0);
  const std::string command = "infer " + slide + " --device cpu --json --embedding --model " + model;
  const Outcome first = run_program(command + " --out " + out), second = run_program(command);
  CAPTURE(first.err);
  REQUIRE(first.code == 0);
  const Json a = json_lines(first.out).at(0), b = json_lines(second.out).at(0);
  CHECK(a["mpp"] == 4.0);
  CHECK(a["logits"].size() == 5);
  CHECK(a["embedding"].size() == 24);
  CHECK(a["embedding"] == b["embedding"]);
  CHECK(a["regions_left"].get<int>() < a["regions"].get<int>());
  CHECK(contains(read_text(out + "/predictions.csv"), "case-001,case-001,"));
  CHECK(fs::file_size(out + "/embeddings.npy") == 128 + 24 * sizeof(float));
  CHECK(read_text(out + "/embeddings_ids.csv") == "slide_id\ncase-001\n");
}

TEST_CASE("a broken slide costs only itself", "[cpu]") {
  const TempDir folder;
  const std::string model = write_small_model(folder.path() + "/model", Head::survival, 4);
  const TempDir slides;
  write_stripes(slides.path(), 0);
  write_stripes(slides.path(), 1);
  std::ofstream(slides.path() + "/broken.png") << "no image";
  const Outcome outcome = run_program("infer " + slides.path() + " --device cpu --json --model " + model + " --out " +
                                      folder.path() + "/out");
  CHECK(outcome.code == 3);
  CHECK(contains(outcome.err, "broken.png"));
  const std::vector<Json> lines = json_lines(outcome.out);
  CHECK(lines.size() == 2);
  CHECK(lines[0].contains("risk"));
}

TEST_CASE("finetune learns a table of images and infer predicts them", "[cpu]") {
  const TempDir folder;
  const std::string model = write_small_model(folder.path() + "/init", Head::classification, 7);
  std::ofstream table(folder.path() + "/table.csv");
  table << "path,label\n";
  for (int i = 0; i < 6; ++i)
    table << fs::path(write_stripes(folder.path(), i)).filename().string() << "," << i % 2 << "\n";
  table.close();
  std::ofstream(folder.path() + "/options.json") << R"({"epochs": 30, "lr": 0.01, "accumulate": 2})";
  const std::string run = folder.path() + "/run";
  const Outcome trained = run_program("finetune " + folder.path() + "/table.csv --device cpu --json --init " + model +
                                      " --out " + run + " --config " + folder.path() + "/options.json");
  CAPTURE(trained.err);
  REQUIRE(trained.code == 0);
  const std::vector<Json> epochs = json_lines(trained.out);
  REQUIRE(epochs.size() == 30);
  CHECK(epochs.back()["loss"].get<double>() < 0.1);
  CHECK(json_lines(read_text(run + "/metrics.jsonl")).size() == 30);
  const Outcome predicted =
      run_program("infer " + folder.path() + "/table.csv --device cpu --json --model " + run + "/model");
  const std::vector<Json> lines = json_lines(predicted.out);
  REQUIRE(lines.size() == 6);
  for (int i = 0; i < 6; ++i)
    CHECK(lines[static_cast<size_t>(i)]["probabilities"][static_cast<size_t>(i % 2)].get<double>() > 0.5);
}

TEST_CASE("bad tables are refused with row and column", "[cpu]") {
  const TempDir folder;
  const auto refused = [&](const std::string& text, const std::string& part) {
    std::ofstream(folder.path() + "/table.csv") << text;
    const Outcome outcome =
        run_program("finetune " + folder.path() + "/table.csv --device cpu --out " + folder.path() + "/run");
    CAPTURE(text, outcome.err);
    CHECK(outcome.code == 3);
    CHECK(contains(outcome.err, part));
    CHECK_FALSE(fs::exists(folder.path() + "/run"));
  };
  refused("slide_id,label\na,0\n", "path");
  refused("path,label\n", "no rows");
  refused("path,label\na.png,high\n", "row 1, column label");
  refused("path,label\na.png,-1\n", "row 1, column label");
  refused("path,survival_months\na.png,3\n", "censorship");
  refused("path,survival_months,censorship\na.png,3,2\n", "row 1, column censorship");
  refused("path,label\nnowhere.png,0\n", "nowhere.png");
}

TEST_CASE("a config file is checked like options", "[cpu]") {
  const TempDir folder;
  const std::string file = folder.path() + "/options.json";
  const auto run_with = [&](const std::string& text, const std::string& arguments) {
    std::ofstream(file) << text;
    return run_program("inspect 6m --json --config " + file + " " + arguments);
  };
  CHECK(json_lines(run_with(R"({"size": 448})", "").out).at(0)["size"] == 448);
  CHECK(json_lines(run_with(R"({"size": 448})", "--size 224").out).at(0)["size"] == 224);
  CHECK(run_with(R"({"sise": 448})", "").code == 2);
  CHECK(run_with(R"({"size": "large"})", "").code == 2);
  CHECK(run_with("size: 448", "").code == 3);
  CHECK(run_with(R"({"size": [1]})", "").code == 3);
}

TEST_CASE("bench compares with an earlier run", "[cpu]") {
  const TempDir folder;
  const std::string file = folder.path() + "/baseline.jsonl";
  const std::string command = "bench ops --device cpu --d-inner 3 --seq-len 64 --repeats 1 --json";
  const auto compare = [&](const std::string& lines, const std::string& arguments) {
    std::ofstream(file) << lines;
    return run_program(command + " --baseline " + file + " " + arguments);
  };
  const Outcome first = run_program(command);
  REQUIRE(first.code == 0);
  // The same rows with other times; a row is found whatever the order of its keys.
  const auto lines_with = [&](double ms) {
    std::string text;
    for (Json line : json_lines(first.out)) {
      line["ms"] = ms;
      text += line.dump() + "\n";
    }
    return text;
  };
  const Outcome faster = compare(lines_with(1e6), "");
  CHECK(faster.code == 0);
  CHECK(json_lines(faster.out).at(0)["baseline_ms"] == 1e6);
  CHECK(json_lines(faster.out).at(1)["ms_over_baseline"] < 1.0);
  CHECK(contains(faster.err, "2 of 2 row(s)"));
  CHECK(compare(lines_with(1e-6), "").code == 1);
  CHECK(compare(lines_with(1e-6), "--tolerance 1e15").code == 0);
  CHECK(compare(lines_with(1.0), "--d-state 4").code == 2);
  CHECK(compare("2 ms\n", "").code == 3);
  CHECK(compare("", "").code == 3);
  CHECK(run_program(command + " --baseline " + folder.path() + "/none").code == 3);
}

TEST_CASE("bench takes small regions and captured steps", "[cpu]") {
  const std::string command = "bench images --device cpu --region-size 32 --batch 1 --repeats 1 --json ";
  const Outcome step = run_program(command + "--mode train --graph");
  REQUIRE(step.code == 0);
  const Json row = json_lines(step.out).at(0);
  CHECK(row["size"] == 32);
  CHECK(row["region_size"] == 32);
  CHECK(row["graph"] == true);
  CHECK(row["gexp_per_s"] > 0.0);
  // What inspect predicts, to a tenth.
  const Json predicted =
      json_lines(run_program("inspect 6m --region-size 32 --size 32 --json").out).at(0)["memory"]["cpu"];
  CHECK(row["peak_gb"] == Approx(1e-9 * predicted["fp32"]["training_bytes"].get<double>()).epsilon(0.1));
  CHECK(run_program(command + "--graph").code == 2);
  // Left open, or refused: a graph is what a GPU gets.
  for (const char* arguments : {"--mode train", "--mode train --no-graph", "--no-graph"}) {
    const Outcome plain = run_program(command + arguments);
    CAPTURE(arguments);
    REQUIRE(plain.code == 0);
    CHECK_FALSE(json_lines(plain.out).at(0).contains("graph"));
  }
  const Outcome odd = run_program("bench images --device cpu --batch 1 --region-size 20");
  CHECK(odd.code == 3);
  CHECK(contains(odd.err, "multiple of 32"));
}

TEST_CASE("real slides give predictions, or a reason", "[data][slow]") {
  const std::string slides = data_dir() + "/slides/";
  const Outcome aperio = run_program("infer " + slides + "CMU-1-Small-Region.svs --device cpu --json");
  CHECK(aperio.code == 0);
  CHECK(json_lines(aperio.out).at(0)["regions"] == 4);
  const Outcome unknown = run_program("infer " + slides + "C3L-00601-26_from-dzi_pyramid.tif --device cpu");
  CHECK(unknown.code == 3);
  CHECK(contains(unknown.err, "--slide-mpp"));
  for (const fs::directory_entry& entry : fs::directory_iterator(data_dir() + "/slides_bad")) {
    if (!entry.is_regular_file() || entry.path().extension() == ".md") continue;
    const Outcome outcome = run_program("infer " + entry.path().string() + " --device cpu --slide-mpp 0.5 --mpp 1");
    CAPTURE(entry.path().string(), outcome.err);
    CHECK(outcome.code == 3);
    CHECK(contains(outcome.err, entry.path().filename().string()));
  }
}

}  // namespace pm::test
