#include "apps/prediction_table.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <set>
#include <unordered_map>

#include "engine/core/check.h"

namespace pm::app {
namespace {

using io::CsvTable;

constexpr double kProbabilitySlack = 1e-6;  // probabilities are written rounded

int64_t class_at(const CsvTable& table, int64_t row, int64_t column, int64_t classes) {
  const double value = io::number_at(table, row, column);
  PM_CHECK(value >= 0.0 && value == std::floor(value), IoError, "{}: classes are whole numbers from 0, got '{}'",
           io::place_in(table, row, column), table.at(row, column));
  PM_CHECK(value < static_cast<double>(classes), IoError,
           "{}: class {} has no column of probabilities, they are p_0 .. p_{}", io::place_in(table, row, column),
           table.at(row, column), classes - 1);
  return static_cast<int64_t>(value);
}

bool is_missing(const std::string& text) { return text.empty() || text == "NA"; }

// Row numbers of each case, cases by their first row.
std::vector<std::vector<int64_t>> rows_of_cases(const CsvTable& table) {
  PM_CHECK(!table.rows.empty(), IoError, "{}: the table has no rows below its line of column names", table.path);
  if (const int64_t slide = table.find("slide_id"); slide >= 0) {
    std::unordered_map<std::string, int64_t> seen;
    for (int64_t row = 0; row < table.row_count(); ++row) {
      const auto [other, fresh] = seen.emplace(table.at(row, slide), row);
      PM_CHECK(fresh, IoError, "{}: slide '{}' stands in row {} already; each slide may be predicted once",
               io::place_in(table, row, slide), other->first, other->second + 1);
    }
  }
  const int64_t subject = table.find("case_id");
  std::vector<std::vector<int64_t>> cases;
  std::unordered_map<std::string, size_t> index;
  for (int64_t row = 0; row < table.row_count(); ++row) {
    if (subject < 0) {
      cases.push_back({row});
      continue;
    }
    const std::string& name = table.at(row, subject);
    PM_CHECK(!is_missing(name), IoError, "{}: a case is needed, got nothing", io::place_in(table, row, subject));
    const auto [known, fresh] = index.emplace(name, cases.size());
    if (fresh) cases.emplace_back();
    cases[known->second].push_back(row);
  }
  return cases;
}

// Whatever is known about a case must be the same in all its rows.
template <typename T, typename Read>
std::vector<T> common_values(const CsvTable& table, const std::vector<std::vector<int64_t>>& cases, int64_t column,
                             Read read) {
  std::vector<T> values;
  for (const std::vector<int64_t>& rows : cases) {
    values.push_back(read(rows[0]));
    for (const int64_t row : rows) {
      PM_CHECK(read(row) == values.back(), IoError, "{}: is '{}', but row {} of the same case '{}' has '{}'",
               io::place_in(table, row, column), table.at(row, column), rows[0] + 1, table.at(row, "case_id"),
               table.at(rows[0], column));
    }
  }
  return values;
}

double mean_at(const CsvTable& table, const std::vector<int64_t>& rows, int64_t column) {
  double sum = 0.0;
  for (const int64_t row : rows) sum += io::number_at(table, row, column);
  return sum / static_cast<double>(rows.size());
}

Levels levels_of(const CsvTable& table, const std::vector<std::vector<int64_t>>& cases, int64_t column) {
  const auto texts =
      common_values<std::string>(table, cases, column, [&](int64_t row) { return table.at(row, column); });
  Levels levels;
  for (const std::string& text : std::set<std::string>(texts.begin(), texts.end())) {
    if (!is_missing(text)) levels.names.push_back(text);
  }
  std::sort(levels.names.begin(), levels.names.end(), io::numbers_first);
  std::map<std::string, int64_t> index;
  for (int64_t k = 0; k < levels.count(); ++k) index[levels.names[static_cast<size_t>(k)]] = k;
  for (const std::string& text : texts) levels.of_case.push_back(is_missing(text) ? -1 : index.at(text));
  return levels;
}

Levels folds_of(const CsvTable& table, const std::vector<std::vector<int64_t>>& cases) {
  const int64_t column = table.find("fold");
  if (column < 0) return {};
  for (int64_t row = 0; row < table.row_count(); ++row) {
    PM_CHECK(!is_missing(table.at(row, column)), IoError, "{}: a fold is needed, got nothing",
             io::place_in(table, row, column));
  }
  return levels_of(table, cases, column);
}

// Columns p_0, p_1, .. without a gap.
std::vector<int64_t> probability_columns(const CsvTable& table) {
  std::vector<int64_t> columns;
  for (int64_t column = table.find("p_0"); column >= 0; column = table.find(fmt::format("p_{}", columns.size()))) {
    columns.push_back(column);
  }
  for (const std::string& name : table.columns) {
    const auto number = name.starts_with("p_") ? io::parse_number(name.substr(2)) : std::nullopt;
    PM_CHECK(!number || *number < static_cast<double>(columns.size()), IoError,
             "{}: has a column '{}' but no column 'p_{}'", table.path, name, columns.size());
  }
  PM_CHECK(columns.size() >= 2, IoError,
           "{}: one column of probabilities per class is needed, p_0, p_1 and so on; its columns are: {}", table.path,
           fmt::join(table.columns, ", "));
  return columns;
}

}  // namespace

SurvivalTable read_survival_table(const CsvTable& table, const std::string& group) {
  const int64_t risk = table.require("risk"), months = table.require("survival_months");
  const int64_t censorship = table.require("censorship");
  const int64_t group_column = group.empty() ? -1 : table.require(group);
  const auto cases = rows_of_cases(table);
  SurvivalTable result;
  result.rows = table.row_count();
  std::vector<double> time = common_values<double>(table, cases, months, [&](int64_t row) {
    const double value = io::number_at(table, row, months);
    PM_CHECK(value >= 0.0, IoError, "{}: a follow-up time of 0 or more is needed, got '{}'",
             io::place_in(table, row, months), table.at(row, months));
    return value;
  });
  std::vector<uint8_t> event = common_values<uint8_t>(table, cases, censorship, [&](int64_t row) -> uint8_t {
    const double value = io::number_at(table, row, censorship);
    PM_CHECK(value == 0.0 || value == 1.0, IoError, "{}: 1 (censored) or 0 (event seen) is needed, got '{}'",
             io::place_in(table, row, censorship), table.at(row, censorship));
    return value == 0.0 ? 1 : 0;
  });
  result.follow_up = metrics::FollowUp(std::move(time), std::move(event));
  for (const std::vector<int64_t>& rows : cases) result.risk.push_back(mean_at(table, rows, risk));
  PM_CHECK(result.follow_up.events() > 0, IoError,
           "{}: no case has an event, all {} are censored (censorship 1); survival metrics need events (censorship 0)",
           table.path, result.follow_up.size());
  result.folds = folds_of(table, cases);
  if (group_column >= 0) result.groups = levels_of(table, cases, group_column);
  return result;
}

ClassificationTable read_classification_table(const CsvTable& table) {
  const int64_t label = table.require("Y"), predicted = table.require("Y_hat");
  const std::vector<int64_t> columns = probability_columns(table);
  const auto cases = rows_of_cases(table);
  const auto classes = static_cast<int64_t>(columns.size());
  ClassificationTable result;
  result.rows = table.row_count();
  result.cases.classes = classes;
  result.cases.label =
      common_values<int64_t>(table, cases, label, [&](int64_t row) { return class_at(table, row, label, classes); });
  for (int64_t row = 0; row < table.row_count(); ++row) {
    class_at(table, row, predicted, classes);
    for (const int64_t column : columns) {
      const double value = io::number_at(table, row, column);
      PM_CHECK(value >= -kProbabilitySlack && value <= 1.0 + kProbabilitySlack, IoError,
               "{}: a probability from 0 to 1 is needed, got '{}'", io::place_in(table, row, column),
               table.at(row, column));
    }
  }
  for (const std::vector<int64_t>& rows : cases) {
    for (const int64_t column : columns) result.cases.score.push_back(mean_at(table, rows, column));
    const auto scores = std::span(result.cases.score).last(columns.size());
    result.cases.predicted.push_back(rows.size() == 1 ? class_at(table, rows[0], predicted, classes)
                                                      : metrics::best_class(scores));
  }
  const std::vector<int64_t>& labels = result.cases.label;
  PM_CHECK(std::any_of(labels.begin(), labels.end(), [&](int64_t y) { return y != labels[0]; }), IoError,
           "{}: column Y: all {} cases have class {}; cases of at least two classes are needed", table.path,
           labels.size(), labels[0]);
  result.folds = folds_of(table, cases);
  return result;
}

}  // namespace pm::app
