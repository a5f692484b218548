// `evaluate` as its users meet it: tables in; numbers, messages and exit codes out.
#include <cmath>
#include <fstream>

#include "io/data/csv.h"
#include "tests/apps/run_program.h"

namespace pm::test {
namespace {

Outcome evaluate(const std::string& table, const std::string& options) {
  const TempDir folder;
  std::ofstream(folder.path() + "/predictions.csv") << table;
  return run_program("evaluate " + folder.path() + "/predictions.csv --json --task " + options);
}

Json evaluated(const std::string& table, const std::string& options) {
  const Outcome outcome = evaluate(table, options);
  CAPTURE(table, outcome.err);
  REQUIRE(outcome.code == 0);
  const std::vector<Json> lines = json_lines(outcome.out);
  REQUIRE(lines.size() == 1);
  return lines[0];
}

// The ten cases of tests/metrics/test_survival.cpp; the numbers come from R.
const std::string kSurvival =
    "risk,survival_months,censorship,arm,fold\n3,1,0,a,0\n3,1,0,b,1\n1,1,0,c,0\n2,2,0,a,1\n5,2,1,b,0\n2,3,0,c,1\n"
    "2,4,0,a,0\n1,4,1,b,1\n1,5,1,c,0\n2,6,0,c,1\n";

const std::string kClasses =
    "Y,Y_hat,p_0,p_1,p_2\n0,0,.8,.1,.1\n0,0,.6,.3,.1\n0,1,.2,.7,.1\n1,1,.3,.6,.1\n1,2,.1,.3,.6\n2,2,.2,.1,.7\n";

void check_near(const Json& value, double expected) {
  CAPTURE(value.dump(), expected);
  REQUIRE(value.is_number());
  CHECK(std::abs(value.get<double>() - expected) <= 1e-12 * std::abs(expected));
}

}  // namespace

TEST_CASE("evaluate gives concordance, log-rank and curve", "[cpu]") {
  const Json result = evaluated(kSurvival, "survival");
  CHECK(result["n"] == 10);
  CHECK(result["events"] == 7);
  check_near(result["c_index"], 0.647058823529412);
  CHECK(result["concordant"] == 18);
  CHECK(result["discordant"] == 8);
  CHECK(result["tied_risk"] == 8);
  CHECK(result["tied_time"] == 2);
  CHECK(result["tied_both"] == 1);
  REQUIRE(result["km"].size() == 6);
  check_near(result["km"][1]["survival"], 0.6);
  check_near(result["km"][1]["std_err"], 0.154919333848297);
  CHECK(result["km"][1]["time"] == 2.0);
  CHECK(result["km"][1]["at_risk"] == 7);
  CHECK(result["km"][5]["std_err"].is_null());
  // three risks are above the median of 2; two of them have an event at 1, one is censored at 2
  const Json& split = result["median_split"];
  CHECK(split["df"] == 1);
  CHECK(split["groups"][1]["n"] == 3);
  CHECK(split["groups"][1]["observed"] == 2);
  check_near(split["groups"][1]["expected"], 3 * 0.3 + 1.0 / 7);
  const double variance = 3.0 * 0.3 * 0.7 * 7 / 9 + 6.0 / 49, difference = 2 - (0.9 + 1.0 / 7);
  check_near(split["chi2"], difference * difference / variance);
  check_near(split["p"], std::erfc(std::sqrt(difference * difference / variance / 2)));
}

TEST_CASE("evaluate compares the groups of a column", "[cpu]") {
  const Json result = evaluated(kSurvival, "survival --group arm");
  for (const std::string key : {"log_rank", "median_split"}) {
    CHECK(result[key]["by"] == "arm");
    CHECK(result[key]["df"] == 2);
    check_near(result[key]["chi2"], 1.80296390388483);
    check_near(result[key]["p"], 0.405967589273556);
  }
  check_near(result["c_index"], 0.647058823529412);
  REQUIRE(result["km"].size() == 10);  // three, three and four distinct times
  CHECK(result["km"][0]["group"] == "a");
  CHECK(result["km"][0]["at_risk"] == 3);
  CHECK(result["km"][9]["group"] == "c");
  const Outcome missing = evaluate(kSurvival + "9,9,1,NA,0\n", "survival --group arm");
  CHECK(contains(missing.err, "1 case has no value in arm"));
  CHECK(json_lines(missing.out).at(0)["log_rank"]["chi2"] == result["log_rank"]["chi2"]);
  CHECK(json_lines(missing.out).at(0)["n"] == 11);
}

TEST_CASE("evaluate gives the metrics of a classifier", "[cpu]") {
  const Json result = evaluated(kClasses, "classification");
  CHECK(result["n"] == 6);
  check_near(result["top1"], 4.0 / 6);
  check_near(result["macro_f1"], (0.8 + 0.5 + 2.0 / 3) / 3);
  check_near(result["balanced_accuracy"], (2.0 / 3 + 0.5 + 1.0) / 3);
  check_near(result["auc"], (7.5 / 9 + 5.5 / 8 + 1.0) / 3);
  CHECK(result["confusion"] == Json::parse("[[2,1,0],[0,1,1],[0,0,1]]"));
  CHECK_FALSE(result.contains("top5"));
  CHECK_FALSE(result.contains("folds"));
}

TEST_CASE("evaluate averages the predictions of a case's slides", "[cpu]") {
  // case x has risks 1 and 5: as one case of risk 3 it is above y, as two slides it is not always
  const Json survival =
      evaluated("case_id,slide_id,risk,survival_months,censorship\nx,s1,1,5,0\ny,s2,2,9,1\nx,s3,5,5.0,0\n", "survival");
  CHECK(survival["n"] == 2);
  CHECK(survival["rows"] == 3);
  CHECK(survival["concordant"] == 1);
  CHECK(survival["discordant"] == 0);
  const Json classes =
      evaluated("case_id,Y,Y_hat,p_0,p_1\nx,0,1,.45,.55\nx,0,0,.9,.1\ny,1,1,.2,.8\n", "classification");
  CHECK(classes["n"] == 2);
  CHECK(classes["confusion"] == Json::parse("[[1,0],[0,1]]"));
}

TEST_CASE("evaluate lists folds with their mean and deviation", "[cpu]") {
  const Json result = evaluated(kSurvival, "survival");
  REQUIRE(result["folds"].size() == 2);
  const double a = result["folds"][0]["c_index"], b = result["folds"][1]["c_index"];
  CHECK(result["folds"][0]["fold"] == "0");
  CHECK(result["folds"][0]["n"] == 5);
  CHECK(a != b);
  check_near(result["fold_mean"]["c_index"], 0.5 * (a + b));
  check_near(result["fold_deviation"]["c_index"], std::abs(a - b) / std::sqrt(2.0));
  // fold 10 comes after fold 2, and has no event
  const Outcome uneven = evaluate(
      "risk,survival_months,censorship,fold\n1,1,1,10\n2,2,1,10\n2,1,0,2\n1,2,0,2\n2,1,0,1\n1,2,0,1\n", "survival");
  const Json folds = json_lines(uneven.out).at(0);
  CHECK(folds["folds"][2]["fold"] == "10");
  CHECK(folds["folds"][2]["c_index"].is_null());
  CHECK(folds["fold_mean"]["c_index"] == 1.0);
  CHECK(contains(uneven.err, "fold 10 has no c_index"));
}

TEST_CASE("evaluate's intervals depend on the seed alone and hold the estimate", "[cpu]") {
  const Json a = evaluated(kSurvival, "survival --bootstrap 200 --seed 3")["bootstrap"];
  CHECK(a == evaluated(kSurvival, "survival --bootstrap 200 --seed 3")["bootstrap"]);
  CHECK(a != evaluated(kSurvival, "survival --bootstrap 200 --seed 4")["bootstrap"]);
  CHECK(a["replicates"] == 200);
  CHECK(a["c_index"]["low"] < 0.647);
  CHECK(a["c_index"]["high"] > 0.647);
  const Json b = evaluated(kClasses, "classification --bootstrap 100")["bootstrap"];
  for (const std::string name : {"top1", "macro_f1", "balanced_accuracy", "auc"})
    CHECK(b[name]["low"] < b[name]["high"]);
}

TEST_CASE("evaluate of a single case says what is undefined", "[cpu]") {
  const Outcome one = evaluate("risk,survival_months,censorship\n1,4,0\n", "survival");
  REQUIRE(one.code == 0);
  const Json result = json_lines(one.out).at(0);
  CHECK(result["c_index"].is_null());
  CHECK(result["median_split"]["p"].is_null());
  CHECK(result["km"].size() == 1);
  CHECK(contains(one.err, "concordance index is undefined"));
  CHECK(contains(one.err, "log-rank test is undefined"));
}

TEST_CASE("evaluate without --json prints for people", "[cpu]") {
  const TempDir folder;
  std::ofstream(folder.path() + "/s.csv") << kSurvival;
  std::ofstream(folder.path() + "/c.csv") << kClasses;
  const Outcome survival = run_program("evaluate " + folder.path() + "/s.csv --task survival --group arm");
  CHECK(survival.code == 0);
  CHECK(contains(survival.out, "c-index           0.6471"));
  CHECK(contains(survival.out, "chi2 1.8030, 2 degrees of freedom, p 0.406"));
  CHECK(contains(survival.out, "Kaplan-Meier, arm = b"));
  const Outcome classes = run_program("evaluate " + folder.path() + "/c.csv --task classification");
  CHECK(classes.code == 0);
  CHECK(contains(classes.out, "top-1 accuracy    0.6667"));
}

TEST_CASE("evaluate refuses tables with row and column", "[cpu]") {
  const auto refused = [](const std::string& options, const std::string& table, const std::vector<std::string>& parts) {
    const Outcome outcome = evaluate(table, options);
    CAPTURE(options, table, outcome.err);
    CHECK(outcome.code == 3);
    CHECK(outcome.out.empty());
    CHECK(contains(outcome.err, "predictions.csv"));
    for (const std::string& part : parts) CHECK(contains(outcome.err, part));
  };
  const std::string survival = "risk,survival_months,censorship";
  refused("survival", "", {"is empty"});
  refused("survival", survival + "\n", {"no rows"});
  refused("survival", "risk,survival_months\n1,2\n", {"no column 'censorship'", "risk, survival_months"});
  refused("survival", survival + "\n1,2,0\nhigh,3,0\n", {"row 2, column risk", "line 3", "'high'"});
  refused("survival", survival + "\n1,,0\n", {"row 1, column survival_months", "got nothing"});
  refused("survival", survival + "\nnan,1,0\n", {"row 1, column risk"});
  refused("survival", survival + "\n1,-2,0\n", {"row 1, column survival_months", "0 or more"});
  refused("survival", survival + "\n1,2,yes\n", {"row 1, column censorship"});
  refused("survival", survival + "\n1,2,2\n", {"row 1, column censorship", "1 (censored)"});
  refused("survival", survival + "\n1,2,1\n2,3,1\n", {"no case has an event", "all 2 are censored"});
  refused("survival --group arm", survival + "\n1,2,0\n", {"no column 'arm'"});
  refused("survival --group arm", survival + ",arm\n1,2,0,a\n2,3,0,a\n", {"column arm", "only one value"});
  refused("survival", survival + ",case_id\n1,2,0,x\n1,3,0,x\n",
          {"row 2, column survival_months", "row 1", "case 'x'"});
  refused("survival", survival + ",case_id\n1,2,0,x\n1,2,1,x\n", {"row 2, column censorship", "case 'x'"});
  refused("survival", survival + ",case_id,fold\n1,2,0,x,0\n1,2,0,x,1\n", {"row 2, column fold", "case 'x'"});
  refused("survival", survival + ",fold\n1,2,0,0\n1,2,0,\n", {"row 2, column fold"});
  refused("survival", survival + ",slide_id\n1,2,0,s\n1,2,0,s\n", {"row 2, column slide_id", "row 1"});
  const std::string classes = "Y,Y_hat,p_0,p_1";
  refused("classification", classes + "\n", {"no rows"});
  refused("classification", "Y,Y_hat\n0,1\n", {"p_0"});
  refused("classification", "Y,Y_hat,p_0,p_2\n0,1,1,0\n", {"'p_2'", "no column 'p_1'"});
  refused("classification", "Y,p_0,p_1\n0,1,0\n", {"no column 'Y_hat'"});
  refused("classification", classes + "\n0,0,1,0\n0,1,0,1\n", {"column Y", "class 0", "at least two"});
  refused("classification", classes + "\n0,0,1,0\n2,1,0,1\n", {"row 2, column Y", "p_0 .. p_1"});
  refused("classification", classes + "\n0,0,1,0\n1,0.5,0,1\n", {"row 2, column Y_hat", "whole numbers"});
  refused("classification", classes + "\n0,0,1,0\n1,1,-3,4\n", {"row 2, column p_0", "from 0 to 1"});
  refused("classification", classes + "\n0,0,1,0\n1,1,0,x\n", {"row 2, column p_1", "'x'"});
}

TEST_CASE("evaluate's wrong command lines end with exit code 2", "[cpu]") {
  CHECK(evaluate(kSurvival, "staging").code == 2);
  CHECK(evaluate(kClasses, "classification --group Y").code == 2);
  CHECK(evaluate(kSurvival, "survival --bootstrap -1").code == 2);
  const Outcome typo = evaluate(kSurvival, "survival --bootstap 10");
  CHECK(typo.code == 2);
  CHECK(contains(typo.err, "did you mean --bootstrap"));
}

TEST_CASE("evaluate agrees with R on a cohort with ties", "[data]") {
  const io::CsvTable lung = io::read_csv(data_dir() + "/survival_ref/lung.csv");
  std::string table = "risk,survival_months,censorship,sex\n";
  for (int64_t i = 0; i < lung.row_count(); ++i) {
    table += lung.at(i, "ph.ecog") + "," + lung.at(i, "time") + "," + (lung.at(i, "event") == "1" ? "0," : "1,") +
             lung.at(i, "sex") + "\n";
  }
  const Json result = evaluated(table, "survival --group sex");
  CHECK(std::abs(result["c_index"].get<double>() - 0.604462525901) < 1e-9);
  CHECK(result["concordant"] == 8392);
  CHECK(std::abs(result["log_rank"]["chi2"].get<double>() - 10.0081738057) < 1e-9);
  CHECK(std::abs(result["log_rank"]["p"].get<double>() - 0.001558469818) < 1e-9);
}

}  // namespace pm::test
