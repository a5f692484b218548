#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/core/error.h"
#include "io/report/plots.h"
#include "io/report/svg.h"
#include "tests/report/sample_run.h"
#include "tests/support/test.h"

namespace pm::test {
namespace {

size_t count(const std::string& text, const std::string& part) {
  size_t found = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + part.size())) ++found;
  return found;
}

}  // namespace

TEST_CASE("text in plots and pages is escaped and valid", "[cpu]") {
  CHECK(io::svg::escape("a<b>&\"'") == "a&lt;b&gt;&amp;&quot;&#39;");
  CHECK(io::svg::escape("Größe µm …\n\t€😀") == "Größe µm …\n\t€😀");
  const std::string bad = "\xEF\xBF\xBD";
  CHECK(io::svg::escape(std::string("a\0b", 3)) == "a" + bad + "b");
  CHECK(io::svg::escape("\x1B\x7F") == bad + bad);
  CHECK(io::svg::escape("caf\xE9") == "caf" + bad);           // Latin-1
  CHECK(io::svg::escape("\xE2\x82") == bad + bad);            // cut off
  CHECK(io::svg::escape("\xC0\xBC") == bad + bad);            // overlong <
  CHECK(io::svg::escape("\xED\xA0\x80") == bad + bad + bad);  // a surrogate
  CHECK(io::svg::escape("\xF5\x80\x80\x80") == bad + bad + bad + bad);
  CHECK(io::svg::shorten("Größe", 5) == "Größe");
  CHECK(io::svg::shorten("Größen", 5) == "Größ…");
}

TEST_CASE("ticks are round", "[cpu]") {
  CHECK(io::svg::round_step(1.0, 5) == Approx(0.2));
  CHECK(io::svg::round_step(37.0, 6) == Approx(10.0));
  CHECK(io::svg::round_step(0.0023, 5) == Approx(0.0005));
  CHECK(io::svg::round_step(0.0, 5) == 1.0);
  const auto around = io::svg::ticks_around(0.52, 0.71, 0.05);
  CHECK(around.front() == Approx(0.5));
  CHECK(around.back() == Approx(0.75));
  CHECK(io::svg::ticks_around(-0.3, 0.4, 0.2).front() == Approx(-0.4));
  CHECK(io::svg::ticks_within(0.0, 39.9, 10.0).size() == 4);
  CHECK(io::svg::tick_label(0.5, 0.05) == "0.50");
  CHECK(io::svg::tick_label(-2.0, 1.0) == "−2");
  CHECK(io::svg::tick_label(12.0, 12.0) == "12");
  CHECK(io::svg::num(-0.001) == "0");
  CHECK(io::svg::num(12.5) == "12.5");
}

TEST_CASE("labels keep their order and distance within the plot", "[cpu]") {
  for (uint64_t seed = 0; seed < 50; ++seed) {
    const int64_t n = 1 + static_cast<int64_t>(seed % 11);
    const Tensor values = uniform(seed, Shape{n}, 0.0, 200.0);
    const double* at = values.data<double>();
    const std::vector<double> wanted(at, at + n);
    const std::vector<double> places = io::svg::spread(wanted, 15.0, 10.0, 190.0);
    CAPTURE(seed, wanted, places);
    for (size_t i = 0; i < places.size(); ++i) {
      CHECK(places[i] >= 10.0 - 1e-9);
      CHECK(places[i] <= 190.0 + 1e-9);
      for (size_t j = 0; j < places.size(); ++j) {
        if (i == j) continue;
        CHECK(std::abs(places[i] - places[j]) >= 15.0 - 1e-9);
        if (wanted[i] < wanted[j]) CHECK(places[i] < places[j]);
      }
    }
  }
  CHECK(io::svg::spread({20.0, 100.0}, 15.0, 0.0, 200.0) == std::vector<double>{20.0, 100.0});
  CHECK(io::svg::spread({100.0, 100.0}, 10.0, 0.0, 200.0) == std::vector<double>{95.0, 105.0});
}

TEST_CASE("survival intervals and p values agree with hand calculation", "[cpu]") {
  const double survival = 5.0 / 6.0 * 4.0 / 5.0, sum = 1.0 / 30.0 + 1.0 / 20.0;
  const auto interval = io::survival_interval({2.0, survival, survival * std::sqrt(sum), 5, 1, 1});
  REQUIRE(interval);
  // exp(-exp(log(-log S) +- 1.959964 sqrt(sum) / |log S|))
  const double log_survival = std::log(survival), half = 1.959963984540054 * std::sqrt(sum) / std::abs(log_survival);
  CHECK(interval->low == Approx(std::exp(-std::exp(std::log(-log_survival) + half))).epsilon(1e-12));
  CHECK(interval->high == Approx(std::exp(-std::exp(std::log(-log_survival) - half))).epsilon(1e-12));
  CHECK(interval->low > 0.0);
  CHECK(interval->high < 1.0);
  CHECK_FALSE(io::survival_interval({5.0, 0.0, std::nan(""), 1, 1, 0}));
  CHECK(io::p_value(0.0004) == "p < 0.001");
  CHECK(io::p_value(0.0234) == "p = 0.023");
  CHECK(io::p_value(0.4567) == "p = 0.46");
  CHECK(io::p_value(1.0) == "p = 1.00");
}

// R: survdiff(Surv(c(1,2,3,4), rep(1,4)) ~ c(0,0,1,1)): observed - expected of the first group is 7/6, its variance 17/36.
TEST_CASE("a Kaplan-Meier plot is made from cases", "[cpu]") {
  const std::vector<int64_t> group = {0, 1, 0, 1};
  const io::KaplanMeierPlot plot = io::kaplan_meier_plot({{1.0, 3.0, 2.0, 4.0}, {1, 1, 1, 1}}, group, {"high", "low"});
  REQUIRE(plot.curves.size() == 2);
  CHECK(plot.curves[0].name == "high");
  REQUIRE(plot.curves[1].steps.size() == 2);
  CHECK(plot.curves[1].steps[0].time == 3.0);
  CHECK(plot.curves[1].steps[0].survival == 0.5);
  REQUIRE(plot.p);
  CHECK(*plot.p == Approx(std::erfc(std::sqrt(0.5 * (49.0 / 36.0) / (17.0 / 36.0)))).epsilon(1e-12));
  // Nothing to compare: no event, or one group.
  CHECK_FALSE(io::kaplan_meier_plot({{1.0, 3.0, 2.0, 4.0}, {0, 0, 0, 0}}, group, {"high", "low"}).p);
  const io::KaplanMeierPlot alone = io::kaplan_meier_plot({{1.0, 3.0}, {1, 0}}, std::vector<int64_t>{0, 0}, {"all"});
  CHECK_FALSE(alone.p);
  CHECK(count(io::kaplan_meier_svg(alone), "log-rank") == 0);
}

TEST_CASE("the Kaplan-Meier plot shows what it was given", "[cpu]") {
  const io::RunReport run = sample_survival_run();
  const std::string plot = io::kaplan_meier_svg(*run.kaplan_meier);
  CHECK(plot.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox="));
  CHECK(count(plot, " width=") == 1);  // the white ground; the picture has no size of its own
  CHECK(count(plot, "log-rank p &lt; 0.001") >= 1);
  CHECK(count(plot, "Number at risk") == 1);
  CHECK(count(plot, ">120<") == 3);  // both groups at the start, and the tick of ten years
  CHECK(count(plot, ">low risk<") == 2);
  size_t censored = 0;
  for (const auto& curve : run.kaplan_meier->curves) {
    for (const auto& step : curve.steps) censored += step.censored > 0 ? 1 : 0;
  }
  CHECK(count(plot, "v8") == censored);
  CHECK(count(plot, "nan") == 0);
  CHECK_THROWS_AS(io::kaplan_meier_svg({}), ShapeError);
  // Nobody in a group, and nobody at all: axes, no broken numbers.
  const std::string empty = io::kaplan_meier_svg({{{"a", {}}, {"b", {}}}, "days", std::nullopt, ""});
  CHECK(count(empty, "nan") == 0);
  CHECK(count(empty, "inf") == 0);
}

TEST_CASE("training curves take any numbers", "[cpu]") {
  const double nan = std::nan(""), infinity = std::numeric_limits<double>::infinity();
  io::RunReport run;
  CHECK(io::training_panels(run).empty());
  CHECK(io::training_curves_svg(run).empty());
  const io::Curve curve =
      GENERATE_REF(io::Curve{{1.0, 0.5}}, io::Curve{{1.0, nan}, {2.0, 0.3}, {3.0, infinity}, {4.0, 0.2}},
                   io::Curve{{1.0, 0.0}, {2.0, 0.0}}, io::Curve{{1.0, -1e-9}, {2.0, 3e12}},
                   io::Curve{{1.0, -1e308}, {2.0, 1e308}}, io::Curve{{1.0, 5e-320}, {2.0, 0.0}}, io::Curve{{0.0, 1.0}});
  run.curves = {{"0", curve, {}, {}, curve}};
  const auto panels = io::training_panels(run);
  CHECK(panels.size() == 2);
  for (const std::string& panel : panels) {
    CHECK(count(panel, "nan") == 0);
    CHECK(count(panel, "inf") == 0);
  }
  run.curves[0].train_loss = {{1.0, nan}};
  CHECK(io::training_panels(run).size() == 1);
}

TEST_CASE("training curves stay small and say what they show", "[cpu]") {
  io::RunReport run = sample_survival_run();
  for (auto& point : run.curves[0].train_loss) point.y = 1.0;
  const auto few = io::training_panels(run);
  REQUIRE(few.size() == 4);
  CHECK(count(few[0], "Training loss") >= 1);
  CHECK(count(few[2], "Validation concordance index") >= 1);
  CHECK(count(few[2], ">chance<") == 1);
  CHECK(count(few[0], ">fold 3<") == 1);
  CHECK(count(few[3], "Learning rate (× 10⁻⁴)") == 1);
  CHECK(count(few[3], "<circle") == 1);  // one schedule, one line
  for (auto& fold : run.curves) {
    io::Curve long_one;
    for (int64_t i = 0; i < 100000; ++i)
      long_one.push_back({static_cast<double>(i) / 1000.0, 1.0 + static_cast<double>(i % 7)});
    fold.train_loss = long_one;
  }
  CHECK(io::training_panels(run)[0].size() < 20000);
  run.curves[1].learning_rate[3].y *= 2.0;
  CHECK(count(io::training_panels(run)[3], "<circle") == 4);
}

TEST_CASE("the confusion matrix shows every count", "[cpu]") {
  const io::RunReport run = sample_staging_run();
  const std::string plot = io::confusion_svg(*run.confusion);
  CHECK(count(plot, "<rect") == 17);
  CHECK(count(plot, ">9</text>") == 1);
  CHECK(count(plot, ">69 %</text>") == 1);  // 9 of 13
  CHECK(count(plot, ">stage III</text>") >= 1);
  CHECK(count(plot, ">long name</text>") == 1);    // above its column in three lines
  CHECK(count(plot, ">a long name</text>") == 1);  // beside its row in two
  const std::string slanted = io::confusion_svg({{"adenocarcinoma-in-situ", "b", "c", "d"}, run.confusion->counts});
  CHECK(count(slanted, "rotate(-45)") == 4);
  CHECK_THROWS_AS(io::confusion_svg({}), ShapeError);
  CHECK_THROWS_WITH(io::confusion_svg({{}, {{1, 2}, {3}}}), ContainsSubstring("2 rows and a row of 1"));
  const std::string unnamed = io::confusion_svg({{}, {{0, 0}, {1, 2}}});  // a class without cases has no shares
  CHECK(count(unnamed, "nan") == 0);
  CHECK(count(unnamed, "%") == 2);
}

}  // namespace pm::test
