#include "io/data/table_outcome.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <set>

#include "engine/core/check.h"

namespace pm::io {
namespace {

constexpr double kDaysPerMonth = 30.0;
constexpr int64_t kMaxClass = 999;
constexpr size_t kMaxNames = 100;
constexpr const char* kStages[] = {"I", "II", "III", "IV"};

std::string upper(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return std::toupper(c); });
  return text;
}

// "Stage IIB", "IIB", "ii" -> "II"; what follows "Stage" otherwise.
std::string stage_of(const std::string& text) {
  std::string stage = upper(text);
  if (stage.starts_with("STAGE")) stage = trimmed(std::string_view(stage).substr(5));
  std::string main = stage;
  while (!main.empty() && std::isdigit(static_cast<unsigned char>(main.back()))) main.pop_back();  // IA2
  if (!main.empty() && main.back() >= 'A' && main.back() <= 'C') main.pop_back();
  return std::find(std::begin(kStages), std::end(kStages), main) != std::end(kStages) ? main : stage;
}

std::optional<int64_t> stage_class(const std::string& text) {
  const auto found = std::find(std::begin(kStages), std::end(kStages), stage_of(text));
  if (found == std::end(kStages)) return std::nullopt;
  return found - std::begin(kStages);
}

// Written where a stage is asked for, but none of the four.
bool is_no_stage(const std::string& text) {
  const std::string stage = stage_of(text);
  return stage == "0" || stage == "X" || stage == "IS";
}

int64_t class_at(const CsvTable& table, int64_t row, int64_t column) {
  const double value = number_at(table, row, column);
  PM_CHECK(value >= 0.0 && value <= static_cast<double>(kMaxClass) && value == std::floor(value), IoError,
           "{}: classes are whole numbers from 0 to {}, got '{}'", place_in(table, row, column), kMaxClass,
           field_at(table, row, column));
  return static_cast<int64_t>(value);
}

LabelColumn read_numbers(const CsvTable& table, int64_t column) {
  LabelColumn result;
  int64_t classes = 0;
  for (int64_t i = 0; i < table.row_count(); ++i) {
    const bool missing = is_missing(field_at(table, i, column));
    result.values.push_back(missing ? std::nullopt : std::optional(class_at(table, i, column)));
    if (!missing) classes = std::max(classes, *result.values.back() + 1);
  }
  for (int64_t i = 0; i < classes; ++i) result.class_names.push_back(std::to_string(i));
  return result;
}

LabelColumn read_stages(const CsvTable& table, int64_t column, bool strict) {
  LabelColumn result;
  result.class_names.assign(std::begin(kStages), std::end(kStages));
  for (int64_t i = 0; i < table.row_count(); ++i) {
    const std::string text = field_at(table, i, column);
    result.values.push_back(is_missing(text) ? std::nullopt : stage_class(text));
    PM_CHECK(result.values.back() || !strict, IoError, "{}: a stage I, II, III or IV is needed, got '{}'",
             place_in(table, i, column), text);
  }
  return result;
}

LabelColumn read_names(const CsvTable& table, int64_t column) {
  std::set<std::string> names;
  int64_t first = -1;
  for (int64_t i = 0; i < table.row_count(); ++i) {
    const std::string text = field_at(table, i, column);
    if (is_missing(text)) continue;
    if (first < 0) first = i;
    names.insert(text);
  }
  PM_CHECK(first >= 0, IoError, "{}: the column {} has no value in any row", table.path,
           table.columns[static_cast<size_t>(column)]);
  PM_CHECK(names.size() >= 2 && names.size() <= kMaxNames, IoError,
           "{}: a number is needed, got '{}' (names of classes are taken too, but 2 to {} different ones; the column "
           "has {})",
           place_in(table, first, column), field_at(table, first, column), kMaxNames, names.size());
  LabelColumn result;
  result.class_names.assign(names.begin(), names.end());
  for (int64_t i = 0; i < table.row_count(); ++i) {
    const auto found = names.find(field_at(table, i, column));
    result.values.push_back(found == names.end() ? std::nullopt : std::optional(std::distance(names.begin(), found)));
  }
  return result;
}

}  // namespace

bool is_missing(const std::string& text) {
  static const std::set<std::string> kWords = {"",     "NA",   "N/A",     "#N/A",         "NAN",
                                               "NONE", "NULL", "UNKNOWN", "NOT REPORTED", "NOT AVAILABLE"};
  return kWords.contains(upper(text)) || (text.size() > 1 && text.front() == '[' && text.back() == ']');
}

LabelColumn read_labels(const CsvTable& table, int64_t column, bool strict) {
  int64_t numbers = 0, stages = 0, others = 0, stray = -1;
  for (int64_t i = 0; i < table.row_count(); ++i) {
    const std::string text = field_at(table, i, column);
    if (is_missing(text)) {
      PM_CHECK(!strict, IoError, "{}: a number is needed, got '{}'", place_in(table, i, column), text);
      continue;
    }
    if (stage_class(text)) ++stages;
    if (parse_number(text)) {
      ++numbers;
    } else if (stray < 0) {
      stray = i;
    }
    if (!stage_class(text) && !is_no_stage(text)) ++others;
  }
  if (stages > 0 && others == 0) return read_stages(table, column, strict);
  PM_CHECK(numbers == 0 || stray < 0, IoError, "{}: a number is needed, got '{}'", place_in(table, stray, column),
           field_at(table, stray, column));
  return numbers > 0 ? read_numbers(table, column) : read_names(table, column);
}

SurvivalColumns find_survival(const CsvTable& table, const std::string& endpoint) {
  const bool overall = endpoint.empty() || upper(endpoint) == "OS";
  std::string lower = endpoint;
  std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char c) { return std::tolower(c); });
  const std::string suffix = overall ? "" : "_" + lower, event = overall ? "OS" : upper(endpoint);
  const struct {
    std::string time, event;
    bool days, events;
  } pairs[] = {{"survival_months" + suffix, "censorship" + suffix, false, false}, {event + ".time", event, true, true}};
  for (const auto& pair : pairs) {
    const SurvivalColumns found{table.find(pair.time), table.find(pair.event), pair.days, pair.events};
    if (found.time < 0 && found.event < 0) continue;
    PM_CHECK(found.time >= 0 && found.event >= 0, IoError, "{}: survival needs both columns, {} and {}; {} is missing",
             table.path, pair.time, pair.event, found.time < 0 ? pair.time : pair.event);
    return found;
  }
  return {};
}

std::optional<Survival> survival_at(const CsvTable& table, const SurvivalColumns& columns, int64_t row, bool strict) {
  const bool missing =
      is_missing(field_at(table, row, columns.time)) || is_missing(field_at(table, row, columns.event));
  if (missing && !strict) return std::nullopt;
  const double time = number_at(table, row, columns.time);
  PM_CHECK(time >= 0.0, IoError, "{}: a time is not negative, got '{}'", place_in(table, row, columns.time),
           field_at(table, row, columns.time));
  const std::optional<double> event = parse_number(field_at(table, row, columns.event));
  PM_CHECK(event && (*event == 0.0 || *event == 1.0), IoError, "{}: {} is needed, got '{}'",
           place_in(table, row, columns.event),
           columns.events ? "1 (event seen) or 0 (censored)" : "1 (censored) or 0 (event seen)",
           field_at(table, row, columns.event));
  // Divided, not multiplied by the inverse: 4005 days are 133.5 months to the last bit, as in the published tables.
  const double months = columns.days ? time / kDaysPerMonth : time;
  return Survival{months, (*event == 1.0) != columns.events};
}

}  // namespace pm::io
