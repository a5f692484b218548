// What is learnt from a made-up cohort: minutes on two processors, so these run on request alone:
// PM_SLOW=1 scripts/test.sh, or pm_test_apps "[training]".
#include <numeric>

#include "io/data/csv.h"
#include "io/data/order.h"
#include "tests/apps/run_program.h"

namespace pm::test {
namespace {

constexpr int kThreads = 1;  // several of these tests share the processors

// The cohort of the quick start.
class MadeUpCohort {
 public:
  MadeUpCohort() {
    const Outcome made = run_program("synth " + cohort() + " --cases 300 --folds 3");
    REQUIRE(made.code == 0);
  }
  std::string table() const { return cohort() + "/slides.csv"; }
  std::string cohort() const { return dir_.path() + "/cohort"; }

  // Another table, in which the outcomes have changed places.
  std::string shuffled_table() const {
    const io::CsvTable table = io::read_csv(this->table());
    std::vector<int64_t> order(table.rows.size());
    std::iota(order.begin(), order.end(), 0);
    order = io::shuffled(order, 5, 0);
    const std::vector<std::string> outcome = {"label", "survival_months", "censorship"};
    std::string text;
    for (size_t column = 0; column < table.columns.size(); ++column)
      text += (column ? "," : "") + table.columns[column];
    for (size_t row = 0; row < table.rows.size(); ++row) {
      for (size_t column = 0; column < table.columns.size(); ++column) {
        const bool moved = std::find(outcome.begin(), outcome.end(), table.columns[column]) != outcome.end();
        text += (column ? "," : "\n") + table.rows[moved ? static_cast<size_t>(order[row]) : row][column];
      }
    }
    const std::string file = cohort() + "/shuffled.csv";
    std::ofstream(file) << text << "\n";
    return file;
  }

  // Concordance over all held-out cases of a cross validation as the quick start does it.
  double concordance(const std::string& table, const std::string& options = "") const {
    const std::string run = dir_.path() + "/run";
    const Outcome trained =
        run_program("finetune " + table + " --splits " + cohort() + "/splits --config " + golden_dir() +
                        "/../../scripts/quickstart.json --device cpu " + options + " --out " + run,
                    "OMP_NUM_THREADS=" + std::to_string(kThreads));
    CAPTURE(trained.err.substr(trained.err.size() - std::min<size_t>(trained.err.size(), 2000)));
    REQUIRE(trained.code == 0);
    const Json summary = Json::parse(read_text(run + "/summary.json"));
    REQUIRE(summary.at("pooled").at("n") == 300);
    return summary.at("pooled").at("c_index").get<double>();
  }

 private:
  TempDir dir_;
};

}  // namespace

TEST_CASE("the quick start learns to rank held-out made-up cases", "[.][slow][training]") {
  const MadeUpCohort cohort;
  const double reached = cohort.concordance(cohort.table());
  CAPTURE(reached);
  CHECK(reached > 0.75);
}

// The held-out cases are judged by their own shuffled outcomes: 0.5 is what a network that learnt nothing reaches, and one that
// saw its held-out cases would not.
TEST_CASE("nothing is learnt from shuffled outcomes", "[.][slow][training]") {
  const MadeUpCohort cohort;
  CHECK(cohort.concordance(cohort.shuffled_table()) == Approx(0.5).margin(0.08));
}

TEST_CASE("thumbnails do not tell made-up cases apart", "[.][slow][training]") {
  const MadeUpCohort cohort;
  CHECK(cohort.concordance(cohort.table(), "--mpp 96") == Approx(0.5).margin(0.08));
}

}  // namespace pm::test
