#include "io/data/csv.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <set>

#include "engine/core/check.h"
#include "io/data/file.h"

namespace pm::io {
namespace {

constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

class Parser {
 public:
  Parser(std::string_view text, const std::string& path, char separator)
      : text_(text), path_(path), separator_(separator) {}

  // The next row that is not blank, and the line where it begins.
  std::optional<std::vector<std::string>> next_row(int64_t& line) {
    while (position_ < text_.size() && at_line_end()) skip_line_end();
    if (position_ >= text_.size()) return std::nullopt;
    line = line_;
    std::vector<std::string> fields;
    while (true) {
      fields.push_back(position_ < text_.size() && text_[position_] == '"' ? quoted() : plain());
      if (position_ < text_.size() && text_[position_] == separator_) {
        ++position_;
        continue;
      }
      if (position_ < text_.size()) skip_line_end();
      return fields;
    }
  }

 private:
  bool at_line_end() const { return text_[position_] == '\n' || text_[position_] == '\r'; }

  void skip_line_end() {
    const bool pair = text_[position_] == '\r' && position_ + 1 < text_.size() && text_[position_ + 1] == '\n';
    position_ += pair ? 2 : 1;
    ++line_;
  }

  std::string plain() {
    const size_t start = position_;
    while (position_ < text_.size() && text_[position_] != separator_ && !at_line_end()) ++position_;
    return std::string(text_.substr(start, position_ - start));
  }

  std::string quoted() {
    const int64_t opened = line_;
    std::string field;
    ++position_;
    while (true) {
      PM_CHECK(position_ < text_.size(), IoError,
               "{}: line {}: a quoted field is not closed before the end of the file", path_, opened);
      const char c = text_[position_];
      if (c == '"') {
        ++position_;
        if (position_ < text_.size() && text_[position_] == '"') {
          field.push_back('"');
          ++position_;
          continue;
        }
        PM_CHECK(position_ >= text_.size() || text_[position_] == separator_ || at_line_end(), IoError,
                 "{}: line {}: {} or the end of the line must follow a closing quote (a quote inside is written twice)",
                 path_, line_, separator_ == ',' ? "a comma" : "a tab");
        return field;
      }
      const bool line_end = c == '\n' || (c == '\r' && (position_ + 1 >= text_.size() || text_[position_ + 1] != '\n'));
      if (line_end) ++line_;
      field.push_back(c);
      ++position_;
    }
  }

  std::string_view text_;
  const std::string& path_;
  char separator_;
  size_t position_ = 0;
  int64_t line_ = 1;
};

void check_text(std::string_view text, const std::string& path) {
  const bool wide = text.substr(0, 2) == "\xFF\xFE" || text.substr(0, 2) == "\xFE\xFF";
  PM_CHECK(!wide, IoError, "{}: is UTF-16 text; save it as CSV in UTF-8", path);
  PM_CHECK(text.substr(0, 2) != "PK", IoError, "{}: is a spreadsheet or ZIP file, not CSV; export the sheet as CSV",
           path);
  PM_CHECK(text.find('\0') == std::string_view::npos, IoError, "{}: is a binary file, not CSV", path);
}

void check_header(const CsvTable& table, char separator) {
  if (table.columns.size() == 1) {
    for (const auto& [other, name] :
         {std::pair{';', "semicolons"}, std::pair{'\t', "tabs"}, std::pair{',', "commas"}}) {
      PM_CHECK(other == separator || table.columns[0].find(other) == std::string::npos, IoError,
               "{}: fields are separated by {}, {} are needed", table.path, name, separator == ',' ? "commas" : "tabs");
    }
  }
  std::set<std::string> seen;
  for (const std::string& column : table.columns) {  // exported row numbers have no name
    PM_CHECK(column.empty() || seen.insert(column).second, IoError, "{}: the column '{}' occurs twice", table.path,
             column);
  }
}

}  // namespace

int64_t CsvTable::find(std::string_view column) const {
  const auto found = std::find(columns.begin(), columns.end(), column);
  return found == columns.end() ? -1 : found - columns.begin();
}

int64_t CsvTable::require(std::string_view column) const {
  const int64_t index = find(column);
  PM_CHECK(index >= 0, IoError, "{}: has no column '{}'; its columns are: {}", path, column, fmt::join(columns, ", "));
  return index;
}

CsvTable parse_csv(std::string_view text, const std::string& path, char separator) {
  check_text(text, path);
  if (text.substr(0, kByteOrderMark.size()) == kByteOrderMark) text.remove_prefix(kByteOrderMark.size());
  Parser parser(text, path, separator);
  CsvTable table;
  table.path = path;
  int64_t line = 0;
  auto header = parser.next_row(line);
  PM_CHECK(header.has_value(), IoError, "{}: is empty, a line of column names is needed", path);
  table.columns = std::move(*header);
  check_header(table, separator);
  while (auto row = parser.next_row(line)) {
    PM_CHECK(row->size() == table.columns.size(), IoError, "{}: line {}: {} fields, the header has {} columns", path,
             line, row->size(), table.columns.size());
    table.rows.push_back(std::move(*row));
    table.lines.push_back(line);
  }
  return table;
}

CsvTable read_csv(const std::string& path) {
  return parse_csv(read_file(path), path, file_ending(path) == ".tsv" ? '\t' : ',');
}

std::string place_in(const CsvTable& table, int64_t row, int64_t column) {
  return fmt::format("{}: row {}, column {} (line {})", table.path, row + 1, table.columns[static_cast<size_t>(column)],
                     table.lines[static_cast<size_t>(row)]);
}

std::string trimmed(std::string_view text) {
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.front()))) text.remove_prefix(1);
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back()))) text.remove_suffix(1);
  return std::string(text);
}

std::string field_at(const CsvTable& table, int64_t row, int64_t column) { return trimmed(table.at(row, column)); }

std::optional<double> parse_number(std::string_view text) {
  double value = 0.0;
  const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool whole = failure == std::errc() && end == text.data() + text.size();
  return whole && std::isfinite(value) ? std::optional(value) : std::nullopt;
}

double number_at(const CsvTable& table, int64_t row, int64_t column) {
  const std::string text = field_at(table, row, column);
  const std::optional<double> value = parse_number(text);
  PM_CHECK(value.has_value(), IoError, "{}: a number is needed, got {}", place_in(table, row, column),
           text.empty() ? "nothing" : "'" + text + "'");
  return *value;
}

bool numbers_first(const std::string& a, const std::string& b) {
  const std::optional<double> x = parse_number(a), y = parse_number(b);
  if (x && y && *x != *y) return *x < *y;
  if (x.has_value() != y.has_value()) return x.has_value();
  return a < b;
}

std::string csv_field(const std::string& text) {
  const bool edge_space = !text.empty() && (text.front() == ' ' || text.back() == ' ');
  if (text.find_first_of(",\"\r\n") == std::string::npos && !edge_space) return text;
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"') quoted.push_back('"');
    quoted.push_back(c);
  }
  quoted.push_back('"');
  return quoted;
}

}  // namespace pm::io
