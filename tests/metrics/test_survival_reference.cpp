// Public survival sets against the values that R's package `survival` gives: survival_ref/ of the data folder.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <map>
#include <sstream>

#include "engine/metrics/survival.h"
#include "io/data/csv.h"
#include "tests/support/test.h"

namespace pm::test {
namespace {

using metrics::FollowUp;

// The first two columns of every set are the time and whether the event was seen (1).
struct Cohort {
  io::CsvTable table;
  FollowUp follow_up;

  std::vector<double> numbers(const std::string& column) const {
    std::vector<double> values;
    const int64_t index = table.require(column);
    for (const auto& row : table.rows) values.push_back(std::stod(row[static_cast<size_t>(index)]));
    return values;
  }
};

Cohort read_cohort(const std::string& name) {
  Cohort cohort;
  cohort.table = io::read_csv(data_dir() + "/survival_ref/" + name + ".csv");
  std::vector<uint8_t> event;
  for (const auto& row : cohort.table.rows) event.push_back(row[1] == "1" ? 1 : 0);
  cohort.follow_up = FollowUp(cohort.numbers(cohort.table.columns[0]), event);
  return cohort;
}

// The lines below each "== NAME n=.. events=.. (..)".
std::map<std::string, std::vector<std::string>> read_reference() {
  std::ifstream file(data_dir() + "/survival_ref/reference.txt");
  std::map<std::string, std::vector<std::string>> sections;
  std::string name;
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("== ")) name = line.substr(3, line.find(' ', 3) - 3);
    if (!name.empty()) sections[name].push_back(line);
  }
  return sections;
}

// The comma-separated numbers that follow `key`.
std::vector<double> numbers_after(const std::string& line, const std::string& key) {
  const size_t place = line.find(key);
  INFO(line << " has no " << key);
  REQUIRE(place != std::string::npos);
  std::vector<double> values;
  const char* text = line.c_str() + place + key.size();
  while (true) {
    char* end = nullptr;
    const double value = std::strtod(text, &end);
    if (end == text) break;
    values.push_back(value);
    if (*end != ',') break;
    text = end + 1;
  }
  REQUIRE_FALSE(values.empty());
  return values;
}
double number_after(const std::string& line, const std::string& key) { return numbers_after(line, key).at(0); }

// The name that stands between two marks.
std::string between(const std::string& line, const std::string& before, const std::string& after) {
  const size_t start = line.find(before) + before.size();
  return line.substr(start, line.find(after, start) - start);
}

void check_same(double actual, double expected) {
  CAPTURE(actual, expected);
  CHECK(std::abs(actual - expected) <= 1e-9 * std::abs(expected));  // false for NaN
}

void check_pairs(const metrics::Concordance& c, const std::string& line) {
  check_same(c.index(), number_after(line, "higher risk) ="));
  CHECK(c.concordant == static_cast<int64_t>(number_after(line, "concordant(as risk)=")));
  CHECK(c.discordant == static_cast<int64_t>(number_after(line, "discordant(as risk)=")));
  CHECK(c.tied_risk == static_cast<int64_t>(number_after(line, "tied.x=")));
  CHECK(c.tied_time == static_cast<int64_t>(number_after(line, "tied.y=")));
  CHECK(c.tied_both == static_cast<int64_t>(number_after(line, "tied.xy=")));
}

void check_log_rank(const Cohort& cohort, const std::string& line) {
  const int64_t column = cohort.table.require(between(line, "log-rank by ", ":"));
  std::vector<std::string> names;
  for (const auto& row : cohort.table.rows) names.push_back(row[static_cast<size_t>(column)]);
  std::vector<std::string> levels = names;
  std::sort(levels.begin(), levels.end());
  levels.erase(std::unique(levels.begin(), levels.end()), levels.end());
  std::vector<int64_t> group;
  for (const std::string& name : names) group.push_back(std::find(levels.begin(), levels.end(), name) - levels.begin());
  const auto result = metrics::log_rank(cohort.follow_up, group, static_cast<int64_t>(levels.size()));
  check_same(result.chi2, number_after(line, "chisq="));
  CHECK(result.degrees == static_cast<int64_t>(number_after(line, "df=")));
  check_same(result.p, number_after(line, " p="));
  // R orders the cell types of `veteran` in its own way, so the groups are compared as a set of (observed, expected).
  const std::vector<double> observed = numbers_after(line, "obs="), expected = numbers_after(line, "exp=");
  REQUIRE(observed.size() == levels.size());
  REQUIRE(expected.size() == levels.size());
  std::vector<std::pair<double, double>> theirs, ours;
  for (size_t k = 0; k < levels.size(); ++k) {
    theirs.emplace_back(expected[k], observed[k]);
    ours.emplace_back(result.expected[k], static_cast<double>(result.observed[k]));
  }
  std::sort(theirs.begin(), theirs.end());
  std::sort(ours.begin(), ours.end());
  for (size_t k = 0; k < levels.size(); ++k) {
    check_same(ours[k].first, theirs[k].first);
    CHECK(ours[k].second == theirs[k].second);
  }
}

void check_curve(const std::vector<metrics::KaplanMeierStep>& curve, const std::string& line) {
  const double time = std::stod(between(line, "KM S(", ")"));
  check_same(metrics::survival_at(curve, time), number_after(line, ")="));
  CHECK(metrics::at_risk_at(curve, time) == static_cast<int64_t>(number_after(line, "at or after t)=")));
  const auto after = std::find_if(curve.begin(), curve.end(), [&](const auto& step) { return step.time > time; });
  REQUIRE(after != curve.begin());
  check_same((after - 1)->std_err, number_after(line, "stderr(Greenwood)="));
}

}  // namespace

TEST_CASE("survival metrics agree with R on every public set", "[data]") {
  const auto sections = read_reference();
  int curves = 0, medians = 0, tests = 0, pairs = 0, models = 0;
  for (const std::string name : {"lung", "veteran", "rossi", "whas500", "tcga_blca_case", "tcga_brca_case"}) {
    REQUIRE(sections.contains(name));
    const Cohort cohort = read_cohort(name);
    const auto curve = metrics::kaplan_meier(cohort.follow_up);
    std::vector<double> linear_predictor(static_cast<size_t>(cohort.follow_up.size()), 0.0);
    for (const std::string& line : sections.at(name)) {
      CAPTURE(name, line);
      if (line.starts_with("== ")) {
        CHECK(cohort.follow_up.size() == static_cast<int64_t>(number_after(line, " n=")));
        CHECK(cohort.follow_up.events() == static_cast<int64_t>(number_after(line, "events=")));
      } else if (line.starts_with("  KM S(")) {
        check_curve(curve, line);
        ++curves;
      } else if (line == "  KM median=NA") {
        CHECK(std::isnan(metrics::median_survival(curve)));
        ++medians;
      } else if (line.starts_with("  KM median=")) {
        check_same(metrics::median_survival(curve), number_after(line, "median="));
        ++medians;
      } else if (line.starts_with("  log-rank")) {
        check_log_rank(cohort, line);
        ++tests;
      } else if (line.starts_with("  Harrell C (higher ")) {
        const auto risk = cohort.numbers(between(line, "(higher ", " ="));
        check_pairs(metrics::concordance(cohort.follow_up, risk), line);
        ++pairs;
      } else if (line.starts_with("  Cox(efron) coef ")) {  // risks that mix two columns
        for (size_t column = 2; column < cohort.table.columns.size(); ++column) {
          const std::string key = " " + cohort.table.columns[column] + "=";
          if (line.find(key) == std::string::npos) continue;
          const std::vector<double> values = cohort.numbers(cohort.table.columns[column]);
          for (size_t i = 0; i < values.size(); ++i) linear_predictor[i] += number_after(line, key) * values[i];
        }
      } else if (line.starts_with("  Cox linear predictor")) {
        check_same(metrics::concordance(cohort.follow_up, linear_predictor).index(), number_after(line, "Harrell C="));
        ++models;
      }
    }
  }
  CHECK(curves == 18);
  CHECK(medians == 6);
  CHECK(tests == 6);
  CHECK(pairs == 12);
  CHECK(models == 6);
}

}  // namespace pm::test
