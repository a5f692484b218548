// Opens a report in headless Chromium and measures it: the page must fit its window, text must be legible and not overlap.
#include <sys/wait.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "io/report/plots.h"
#include "io/report/svg.h"
#include "tests/report/sample_run.h"
#include "tests/support/test.h"

namespace pm::test {
namespace {

using Json = nlohmann::json;

// The page in frames of several widths; what is measured becomes the title, as JSON.
std::string measuring_page(const io::RunReport& run, const std::vector<int>& widths) {
  const std::string report = io::report_html(run);
  std::string out = "<!doctype html><meta charset=\"utf-8\"><body style=\"margin:0\">";
  for (const int width : widths) {
    out += "<iframe style=\"border:0;display:block;height:900px;width:" + std::to_string(width) + "px\" srcdoc=\"" +
           io::svg::escape(report) + "\"></iframe>";
  }
  out += "<textarea>" + io::svg::escape(io::training_curves_svg(run)) + "</textarea>";
  if (run.kaplan_meier) out += "<textarea>" + io::svg::escape(io::kaplan_meier_svg(*run.kaplan_meier)) + "</textarea>";
  if (run.confusion) out += "<textarea>" + io::svg::escape(io::confusion_svg(*run.confusion)) + "</textarea>";
  return out + R"(<script>
function measure(frame) {
  const page = frame.contentDocument, result = {width: frame.clientWidth, scroll: page.documentElement.scrollWidth};
  result.outside = []; result.overlaps = []; result.smallest = 1e9;
  for (const svg of page.querySelectorAll('svg')) {
    const edge = svg.getBoundingClientRect(), texts = [...svg.querySelectorAll('text')], boxes = texts.map(t => t.getBoundingClientRect());
    const scale = edge.width / svg.viewBox.baseVal.width;
    texts.forEach((text, i) => {
      const box = boxes[i];
      result.smallest = Math.min(result.smallest, parseFloat(page.defaultView.getComputedStyle(text).fontSize) * scale);
      if (box.left < edge.left - 1 || box.right > edge.right + 1 || box.top < edge.top - 1 || box.bottom > edge.bottom + 1)
        result.outside.push(text.textContent);
      if (text.hasAttribute('transform')) return;
      for (let j = 0; j < i; ++j) {
        if (texts[j].hasAttribute('transform')) continue;
        const wide = Math.min(box.right, boxes[j].right) - Math.max(box.left, boxes[j].left);
        const high = Math.min(box.bottom, boxes[j].bottom) - Math.max(box.top, boxes[j].top);
        if (wide > 1 && high > 6 * scale) result.overlaps.push(texts[j].textContent + ' | ' + text.textContent);
      }
    });
  }
  result.broken = [...page.images].filter(image => image.naturalWidth === 0).length;
  result.pictures = page.images.length;
  const files = [...document.querySelectorAll('textarea')].map(file => new DOMParser().parseFromString(file.value, 'image/svg+xml'));
  result.malformed = files.filter(file => file.querySelector('parsererror')).length;
  result.plots = page.querySelectorAll('svg').length;
  return result;
}
addEventListener('load', () => { document.title = JSON.stringify([...document.querySelectorAll('iframe')].map(measure)); });
</script>)";
}

std::string unescape(std::string text) {
  const std::pair<const char*, const char*> entities[] = {
      {"&lt;", "<"}, {"&gt;", ">"}, {"&quot;", "\""}, {"&amp;", "&"}};
  for (const auto& [from, to] : entities) {
    for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + 1))
      text.replace(at, std::string(from).size(), to);
  }
  return text;
}

// Each call has a profile of its own, so that tests can run side by side.
Json measure(const io::RunReport& run, const std::vector<int>& widths) {
  const TempDir folder;
  std::ofstream(folder.path() + "/page.html") << measuring_page(run, widths);
  const std::string out = folder.path() + "/dom.html";
  const std::string command = "timeout 100 '" + browser() +
                              "' --headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
                              "--disable-dev-shm-usage --hide-scrollbars --user-data-dir='" +
                              folder.path() +
                              "/profile' --virtual-time-budget=10000 --window-size=1400,900 --dump-dom 'file://" +
                              folder.path() + "/page.html' >'" + out + "' 2>/dev/null";
  const int status = std::system(command.c_str());
  REQUIRE((WIFEXITED(status) && WEXITSTATUS(status) == 0));
  std::ifstream file(out);
  std::stringstream text;
  text << file.rdbuf();
  const std::string dom = text.str();
  const size_t start = dom.find("<title>[");  // of the outer page: those in the frames are attributes
  REQUIRE(start != std::string::npos);
  return Json::parse(unescape(dom.substr(start + 7, dom.find("</title>", start) - start - 7)));
}

}  // namespace

TEST_CASE("a report fits a desktop and a phone window", "[browser]") {
  const bool survival = GENERATE(true, false);
  const io::RunReport run = survival ? sample_survival_run() : sample_staging_run();
  const Json frames = measure(run, {1280, 390, 320});
  REQUIRE(frames.size() == 3);
  for (const Json& frame : frames) {
    INFO(frame.dump(1));
    CHECK(frame["scroll"] == frame["width"]);
    CHECK(frame["plots"] == 5);  // four panels and one plot of its own
    CHECK(frame["pictures"] == run.worst_slides.size() - (survival ? 1 : 0));
    CHECK(frame["broken"] == 0);
    CHECK(frame["malformed"] == 0);
    CHECK(frame["outside"].empty());
    CHECK(frame["overlaps"].empty());
    if (frame["width"] >= 390) CHECK(frame["smallest"] >= 9.0);
  }
}

TEST_CASE("many folds, groups and classes stay legible", "[browser]") {
  io::RunReport run = sample_survival_run();
  for (int64_t fold = 4; fold < 12; ++fold) {
    run.folds.push_back(run.folds[0]);
    run.curves.push_back(run.curves[static_cast<size_t>(fold % 4)]);
    run.folds.back().name = run.curves.back().fold = std::to_string(fold);
  }
  for (const char* name : {"third group", "fourth group, of patients with a long name"}) {
    run.kaplan_meier->curves.push_back(run.kaplan_meier->curves[1]);
    run.kaplan_meier->curves.back().name = name;
  }
  run.confusion = io::ConfusionMatrix{{"adenocarcinoma", "squamous cell carcinoma"}, {}};
  run.confusion->counts.assign(12, std::vector<int64_t>(12, 37));
  for (const Json& frame : measure(run, {1280, 390})) {
    INFO(frame.dump(1));
    CHECK(frame["scroll"] == frame["width"]);
    CHECK(frame["outside"].empty());
    CHECK(frame["overlaps"].empty());
    CHECK(frame["malformed"] == 0);
  }
}

TEST_CASE("long words and hostile text do not break the page", "[browser]") {
  io::RunReport run = sample_survival_run();
  const std::string long_word(300, 'w');
  run.title = run.verdict = run.command_line = long_word;
  run.warnings = {long_word, kHostileText};
  run.settings.push_back({long_word, long_word});
  run.slide_problems.push_back({long_word, long_word, true, long_word});
  run.folds[1].note = long_word;
  run.cohort->table = long_word;
  run.cohort->remarks = {long_word};
  run.worst_slides[0].slide_id = run.worst_slides[0].truth = long_word;
  run.kaplan_meier->note = long_word;
  run.kaplan_meier->curves[0].name = kHostileText;
  for (const Json& frame : measure(run, {1280, 390})) {
    INFO(frame.dump(1));
    CHECK(frame["scroll"] == frame["width"]);
    CHECK(frame["malformed"] == 0);
    CHECK(frame["pictures"] == 7);
    CHECK(frame["plots"] == 5);
  }
}

}  // namespace pm::test
