#include "io/data/slide_table.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>

#include "engine/core/check.h"
#include "io/data/csv.h"
#include "io/data/file.h"
#include "io/data/slide_files.h"
#include "io/data/table_outcome.h"

namespace pm::io {
namespace fs = std::filesystem;
namespace {

SlideRow row_of_file(const fs::path& path) {
  SlideRow row;
  row.slide_id = without_slide_ending(path.filename().string());
  row.case_id = row.slide_id;
  row.path = path.string();
  return row;
}

int64_t first_of(const CsvTable& csv, std::initializer_list<const char*> names) {
  for (const char* name : names) {
    if (csv.find(name) >= 0) return csv.find(name);
  }
  return -1;
}

std::string column_name(const CsvTable& csv, int64_t column) {
  return column < 0 ? "" : csv.columns[static_cast<size_t>(column)];
}

class TableReader {
 public:
  TableReader(const std::string& file, const TableOptions& options) : csv_(read_csv(file)), options_(options) {
    PM_CHECK(!csv_.rows.empty(), IoError, "{}: the table has no rows", file);
    table_.file = file;
    find_columns();
    find_outcome();
  }

  SlideTable read() {
    for (int64_t i = 0; i < csv_.row_count(); ++i) add_row(i);
    if (slide_ < 0 && path_ >= 0) name_by_path();
    check_twice();
    check_agreement();
    PM_CHECK(!table_.rows.empty(), IoError, "{}: no row is left of {}: {}; the first: row {}", table_.file,
             csv_.row_count(), table_.skipped[0].reason, table_.skipped[0].row);
    return std::move(table_);
  }

 private:
  int64_t named_or_first_of(const std::string& named, std::initializer_list<const char*> names) const {
    return named.empty() ? first_of(csv_, names) : csv_.require(named);
  }

  void find_columns() {
    path_ = named_or_first_of(options_.path_column, {"path", "file", "slide_path"});
    slide_ = named_or_first_of(options_.slide_column, {"slide_id"});
    case_ = named_or_first_of(options_.case_column, {"case_id", "patient_id", "patient", "bcr_patient_barcode"});
    mpp_ = csv_.find("mpp");
    PM_CHECK(path_ >= 0 || slide_ >= 0 || case_ >= 0, IoError,
             "{}: a slide table needs a column 'path', or 'slide_id' or 'case_id' and the folder of the slides; its "
             "columns are: {}",
             table_.file, fmt::join(csv_.columns, ", "));
    PM_CHECK(
        path_ >= 0 || !options_.find_slides || !options_.slides.empty() || options_.keep_missing, IoError,
        "{}: a slide table needs a column 'path', or name the folder of the slides with --slides; its columns are: {}",
        table_.file, fmt::join(csv_.columns, ", "));
    if (path_ < 0 && options_.find_slides && !options_.slides.empty()) folder_.emplace(options_.slides);
    fold_ = named_or_first_of(options_.fold_column, {"fold"});
    for (size_t i = 0; fold_ < 0 && i < csv_.columns.size(); ++i) {
      const bool other = std::any_of(csv_.columns.begin() + static_cast<int64_t>(i) + 1, csv_.columns.end(),
                                     [](const std::string& name) { return name.starts_with("fold_"); });
      if (!csv_.columns[i].starts_with("fold_")) continue;
      if (!other) fold_ = static_cast<int64_t>(i);
      break;  // of several none is the obvious one
    }
    table_.cases_from_slides = case_ < 0;
    table_.case_column = column_name(csv_, case_);
    table_.fold_column = column_name(csv_, fold_);
  }

  void find_outcome() {
    if (options_.outcome == Outcome::none) return;
    const bool automatic = options_.outcome == Outcome::automatic, named = !options_.label_column.empty();
    int64_t label = named ? csv_.require(options_.label_column) : csv_.find("label");
    const bool survival = options_.outcome == Outcome::survival || (automatic && !named);
    if (survival) survival_ = options_.time_column.empty() ? find_survival(csv_, options_.endpoint) : named_survival();
    const int64_t stage =
        first_of(csv_, {"stage", "ajcc_stage", "ajcc_pathologic_tumor_stage", "ajcc_pathologic_stage"});
    if (label < 0 && (options_.outcome == Outcome::classes || (automatic && survival_.time < 0))) label = stage;
    if (options_.outcome == Outcome::survival) label = -1;
    if (label >= 0) {
      // Our own column has a value in every row; published ones do not.
      strict_ = column_name(csv_, label) == "label" && !options_.skip_missing;
      labels_ = read_labels(csv_, label, strict_);
      table_.class_names = labels_.class_names;
      table_.label_column = column_name(csv_, label);
    }
    table_.has_labels = label >= 0;
    table_.has_survival = survival_.time >= 0;
    table_.time_column = column_name(csv_, survival_.time);
    table_.event_column = column_name(csv_, survival_.event);
  }

  SurvivalColumns named_survival() const {
    const bool events = !options_.event_column.empty();
    return {csv_.require(options_.time_column),
            csv_.require(events ? options_.event_column : options_.censorship_column), /*days=*/false, events};
  }

  std::string id_at(int64_t row, int64_t column) const {
    const std::string id = field_at(csv_, row, column);
    PM_CHECK(!id.empty(), IoError, "{}: an id is needed, got nothing", place_in(csv_, row, column));
    return id;
  }

  void add_row(int64_t i) {
    SlideRow row;
    row.row = i + 1;
    if (path_ >= 0) {
      const std::string name = field_at(csv_, i, path_);
      PM_CHECK(!name.empty(), IoError, "{}: a file is needed, got nothing", place_in(csv_, i, path_));
      row.path = resolve(name);
      row.slide_id = without_slide_ending(fs::path(name).filename().string());
    }
    if (slide_ >= 0) row.slide_id = without_slide_ending(id_at(i, slide_));
    row.case_id = case_ >= 0 ? id_at(i, case_) : row.slide_id;
    if (mpp_ >= 0 && !is_missing(field_at(csv_, i, mpp_))) {
      row.mpp = number_at(csv_, i, mpp_);
      PM_CHECK(*row.mpp > 0.0, IoError, "{}: micrometres per pixel are above 0, got '{}'", place_in(csv_, i, mpp_),
               field_at(csv_, i, mpp_));
    }
    if (fold_ >= 0) row.fold = field_at(csv_, i, fold_);
    if (!add_outcome(i, row)) return;
    if (path_ < 0 && slide_ < 0) return add_case(row);
    if (path_ >= 0 && options_.find_slides && !fs::exists(row.path)) {
      return skip_or_refuse(row, fmt::format("{}: there is no file {}", place_in(csv_, i, path_), row.path));
    }
    if (path_ < 0 && folder_) {
      row.path = folder_->find(id_at(i, slide_));
      if (row.path.empty())
        return skip_or_refuse(row, fmt::format("{}: there is no slide {} in {}", place_in(csv_, i, slide_),
                                               id_at(i, slide_), options_.slides));
    }
    table_.rows.push_back(std::move(row));
  }

  // A row of a table of cases: every file that carries the case's id.
  void add_case(const SlideRow& row) {
    const auto [first, is_new] = case_rows_.emplace(row.case_id, row);
    if (!is_new) return check_same(first->second, row);  // published tables list cases twice
    if (!folder_) {
      table_.rows.push_back(row);
      table_.rows.back().slide_id = row.case_id;
      return;
    }
    const std::vector<std::string> files = folder_->of_case(row.case_id);
    if (files.empty()) {
      return skip_or_refuse(row, fmt::format("{}: there is no slide of case {} in {}",
                                             place_in(csv_, row.row - 1, case_), row.case_id, options_.slides));
    }
    for (const std::string& file : files) {
      table_.rows.push_back(row);
      table_.rows.back().path = file;
      table_.rows.back().slide_id = without_slide_ending(fs::path(file).filename().string());
    }
  }

  // False: the row is left out for want of an outcome.
  bool add_outcome(int64_t i, SlideRow& row) {
    std::string missing;
    if (table_.has_labels) row.label = labels_.values[static_cast<size_t>(i)];
    if (table_.has_labels && !row.label) missing = table_.label_column;
    if (table_.has_survival) {
      // As with classes: ours has a value in every row, published tables do not.
      const bool ours = !survival_.days && options_.time_column.empty();
      const auto survival = survival_at(csv_, survival_, i, ours && !options_.skip_missing);
      if (survival) {
        row.survival_months = survival->months;
        row.censored = survival->censored;
      } else {
        missing = table_.time_column;
      }
    }
    if (missing.empty()) return true;
    table_.skipped.push_back({row.row, row.case_id, row.slide_id, "no " + missing});
    return false;
  }

  void skip_or_refuse(const SlideRow& row, const std::string& message) {
    if (options_.keep_missing) {
      table_.rows.push_back(row);
      if (row.slide_id.empty()) table_.rows.back().slide_id = row.case_id;
      return;
    }
    PM_CHECK(options_.skip_missing, IoError, "{}", message);
    table_.skipped.push_back({row.row, row.case_id, row.slide_id, "no file"});
  }

  std::string resolve(const fs::path& name) const {
    if (name.is_absolute()) return name.string();
    const fs::path beside = fs::path(table_.file).parent_path() / name, below = fs::path(options_.slides) / name;
    return (!options_.slides.empty() && fs::exists(below) ? below : beside).string();
  }

  // Without ids of their own, slides of one name in two folders are told apart by their paths.
  void name_by_path() {
    std::set<std::string> names;
    for (const SlideRow& row : table_.rows) names.insert(row.slide_id);
    if (names.size() == table_.rows.size()) return;
    for (SlideRow& row : table_.rows) {
      row.slide_id = without_slide_ending(field_at(csv_, row.row - 1, path_));
      if (case_ < 0) row.case_id = row.slide_id;
    }
  }

  void check_twice() const {
    std::map<std::string, int64_t> ids, paths;
    for (const SlideRow& row : table_.rows) {
      if (slide_ >= 0) {
        const auto [first, is_new] = ids.emplace(row.slide_id, row.row);
        PM_CHECK(is_new, IoError, "{}: slide {} is there twice, first in row {}", place_in(csv_, row.row - 1, slide_),
                 row.slide_id, first->second);
      }
      if (row.path.empty()) continue;
      const int64_t column = path_ >= 0 ? path_ : slide_ >= 0 ? slide_ : case_;
      const auto [first, is_new] = paths.emplace(fs::path(row.path).lexically_normal().string(), row.row);
      PM_CHECK(is_new, IoError, "{}: the slide {} is there twice, first in row {}", place_in(csv_, row.row - 1, column),
               row.path, first->second);
    }
  }

  void check_same(const SlideRow& first, const SlideRow& row) const {
    const auto place = [&](const std::string& column) { return place_in(csv_, row.row - 1, csv_.find(column)); };
    PM_CHECK(first.label == row.label, IoError,
             "{}: case {} has another class in row {}; what belongs to a slide alone needs a case_id "
             "of its own",
             place(table_.label_column), row.case_id, first.row);
    PM_CHECK(first.survival_months == row.survival_months, IoError, "{}: case {} has another time in row {}",
             place(table_.time_column), row.case_id, first.row);
    PM_CHECK(first.censored == row.censored, IoError, "{}: case {} has another value in row {}",
             place(table_.event_column), row.case_id, first.row);
  }

  void check_agreement() const {
    std::map<std::string, const SlideRow*> cases;
    for (const SlideRow& row : table_.rows) check_same(*cases.emplace(row.case_id, &row).first->second, row);
  }

  CsvTable csv_;
  const TableOptions& options_;
  SlideTable table_;
  std::optional<SlideFolder> folder_;
  int64_t path_ = -1, slide_ = -1, case_ = -1, mpp_ = -1, fold_ = -1;
  bool strict_ = false;
  LabelColumn labels_;
  SurvivalColumns survival_;
  std::map<std::string, SlideRow> case_rows_;  // of a table of cases
};

// Times where the cuts fall so that each bin holds an event: cut i starts a bin at the distinct time whose share of events
// before it is nearest to i / n_bins.
std::vector<double> tied_cuts(const std::vector<double>& times, int64_t n_bins) {
  std::vector<double> distinct;
  std::vector<int64_t> before;  // events earlier than it
  for (size_t i = 0; i < times.size(); ++i) {
    if (i > 0 && times[i] == times[i - 1]) continue;
    distinct.push_back(times[i]);
    before.push_back(static_cast<int64_t>(i));
  }
  const auto count = static_cast<int64_t>(distinct.size());
  std::vector<double> cuts;
  int64_t last = 0;
  for (int64_t i = 1; i < n_bins; ++i) {
    const double wanted = static_cast<double>(i) / static_cast<double>(n_bins) * static_cast<double>(times.size());
    int64_t best = last + 1;
    for (int64_t k = last + 1; k <= count - (n_bins - i); ++k) {
      const auto distance = [&](int64_t at) {
        return std::abs(static_cast<double>(before[static_cast<size_t>(at)]) - wanted);
      };
      if (distance(k) < distance(best)) best = k;
    }
    cuts.push_back(distinct[static_cast<size_t>(best)]);
    last = best;
  }
  return cuts;
}

}  // namespace

SlideTable read_slide_table(const std::string& file, const TableOptions& options) {
  return TableReader(file, options).read();
}

std::vector<SlideRow> list_slides(const std::string& input) {
  PM_CHECK(fs::exists(input), IoError, "{}: there is no such file or folder", input);
  if (const std::string ending = file_ending(input); ending == ".csv" || ending == ".tsv") {
    TableOptions options;
    options.outcome = Outcome::none;
    options.find_slides = false;  // a file that is not there costs its own row alone
    SlideTable table = read_slide_table(input, options);
    PM_CHECK(!table.rows[0].path.empty(), IoError, "{}: a table of slides needs a column 'path'", input);
    return std::move(table.rows);
  }
  if (!fs::is_directory(input)) return {row_of_file(input)};
  std::vector<SlideRow> rows;
  for (const fs::directory_entry& entry : fs::directory_iterator(input)) {
    if (entry.is_regular_file() && has_slide_ending(entry.path().string())) rows.push_back(row_of_file(entry.path()));
  }
  PM_CHECK(!rows.empty(), IoError, "{}: the folder holds no slides or images", input);
  std::sort(rows.begin(), rows.end(), [](const SlideRow& a, const SlideRow& b) { return a.path < b.path; });
  return rows;
}

std::vector<double> survival_cuts(const std::vector<SlideRow>& rows, int64_t n_bins) {
  PM_CHECK(n_bins >= 1, ConfigError, "at least one time bin is needed, got {}", n_bins);
  std::vector<double> times;
  std::set<std::string> seen;
  for (const SlideRow& row : rows) {
    if (row.survival_months && !row.censored && seen.insert(row.case_id).second) times.push_back(*row.survival_months);
  }
  PM_CHECK(!times.empty(), IoError, "the table has no event (censorship 0): time bins need the times of events");
  std::sort(times.begin(), times.end());
  std::vector<double> cuts;
  for (int64_t i = 1; i < n_bins; ++i) {
    const double place = static_cast<double>(i) / static_cast<double>(n_bins) * static_cast<double>(times.size() - 1);
    const auto below = static_cast<size_t>(place);
    const double above = times[std::min(below + 1, times.size() - 1)];
    cuts.push_back(times[below] + (place - static_cast<double>(below)) * (above - times[below]));
  }
  std::vector<int64_t> events(static_cast<size_t>(n_bins));
  for (const double time : times) ++events[static_cast<size_t>(survival_bin(time, cuts))];
  const bool empty_bin = std::find(events.begin(), events.end(), 0) != events.end();
  const std::set<double> distinct(times.begin(), times.end());
  return empty_bin && static_cast<int64_t>(distinct.size()) >= n_bins ? tied_cuts(times, n_bins) : cuts;
}

int64_t survival_bin(double months, const std::vector<double>& cuts) {
  return std::upper_bound(cuts.begin(), cuts.end(), months) - cuts.begin();
}

}  // namespace pm::io
