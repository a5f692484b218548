#include "io/data/slide_table.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <set>

#include "engine/core/check.h"
#include "io/data/csv.h"

namespace pm::io {
namespace fs = std::filesystem;
namespace {

double number_at(const CsvTable& table, const std::string& file, int64_t row, int64_t column) {
  const std::string& text = table.at(row, column);
  double value = 0.0;
  const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), value);
  PM_CHECK(failure == std::errc() && end == text.data() + text.size() && std::isfinite(value), IoError,
           "{}: row {}, column {}: a number is needed, got '{}'", file, row + 1, table.columns[static_cast<size_t>(column)], text);
  return value;
}

bool has_slide_ending(const fs::path& path) {
  static const std::set<std::string> kEndings = {".svs", ".tif",  ".tiff", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu",
                                                 ".bif", ".svslide", ".dcm",  ".png",  ".jpg",  ".jpeg"};
  std::string ending = path.extension().string();
  std::transform(ending.begin(), ending.end(), ending.begin(), [](unsigned char c) { return std::tolower(c); });
  return kEndings.contains(ending);
}

SlideRow row_of_file(const fs::path& path) {
  SlideRow row;
  row.slide_id = path.stem().string();
  row.case_id = row.slide_id;
  row.path = path.string();
  return row;
}

}  // namespace

SlideTable read_slide_table(const std::string& file, const TableOptions&) {
  const CsvTable table = read_csv(file);
  const int64_t path = table.find("path"), slide = table.find("slide_id"), subject = table.find("case_id");
  const int64_t mpp = table.find("mpp"), label = table.find("label");
  const int64_t months = table.find("survival_months"), censorship = table.find("censorship");
  PM_CHECK(path >= 0, IoError, "{}: a slide table needs a column 'path'; its columns are: {}", file,
           fmt::join(table.columns, ", "));
  PM_CHECK((months >= 0) == (censorship >= 0), IoError, "{}: survival needs both columns, survival_months and censorship", file);
  PM_CHECK(!table.rows.empty(), IoError, "{}: the table has no rows", file);
  const fs::path folder = fs::path(file).parent_path();
  SlideTable result;
  result.has_labels = label >= 0;
  result.has_survival = months >= 0;
  for (int64_t i = 0; i < static_cast<int64_t>(table.rows.size()); ++i) {
    const fs::path relative = table.at(i, path);
    PM_CHECK(!relative.empty(), IoError, "{}: row {}, column path: a file is needed, got nothing", file, i + 1);
    SlideRow row = row_of_file(relative.is_absolute() ? relative : folder / relative);
    if (slide >= 0) row.slide_id = table.at(i, slide);
    row.case_id = subject >= 0 ? table.at(i, subject) : row.slide_id;
    if (mpp >= 0 && !table.at(i, mpp).empty()) row.mpp = number_at(table, file, i, mpp);
    if (label >= 0) {
      const double value = number_at(table, file, i, label);
      PM_CHECK(value >= 0.0 && value == std::floor(value) && value < 1e6, IoError,
               "{}: row {}, column label: classes are whole numbers from 0, got '{}'", file, i + 1, table.at(i, label));
      row.label = static_cast<int64_t>(value);
    }
    if (months >= 0) {
      row.survival_months = number_at(table, file, i, months);
      const double censored = number_at(table, file, i, censorship);
      PM_CHECK(censored == 0.0 || censored == 1.0, IoError,
               "{}: row {}, column censorship: 1 (censored) or 0 (event seen) is needed, got '{}'", file, i + 1,
               table.at(i, censorship));
      row.censored = censored == 1.0;
    }
    result.rows.push_back(std::move(row));
  }
  return result;
}

std::vector<SlideRow> list_slides(const std::string& input) {
  PM_CHECK(fs::exists(input), IoError, "{}: there is no such file or folder", input);
  if (fs::path(input).extension() == ".csv") return read_slide_table(input).rows;
  if (!fs::is_directory(input)) return {row_of_file(input)};
  std::vector<SlideRow> rows;
  for (const fs::directory_entry& entry : fs::directory_iterator(input)) {
    if (entry.is_regular_file() && has_slide_ending(entry.path())) rows.push_back(row_of_file(entry.path()));
  }
  PM_CHECK(!rows.empty(), IoError, "{}: the folder holds no slides or images", input);
  std::sort(rows.begin(), rows.end(), [](const SlideRow& a, const SlideRow& b) { return a.path < b.path; });
  return rows;
}

std::vector<double> survival_cuts(const std::vector<SlideRow>& rows, int64_t n_bins) {
  std::vector<double> times;
  for (const SlideRow& row : rows) {
    if (row.survival_months && !row.censored) times.push_back(*row.survival_months);
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
  return cuts;
}

int64_t survival_bin(double months, const std::vector<double>& cuts) {
  return std::upper_bound(cuts.begin(), cuts.end(), months) - cuts.begin();
}

}  // namespace pm::io
