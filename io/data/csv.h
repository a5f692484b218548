// Comma-separated tables as RFC 4180 describes them and as spreadsheet programs write them; tab-separated ones alike.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace pm::io {

struct CsvTable {
  std::string path;                            // for messages
  std::vector<std::string> columns;            // the first line
  std::vector<std::vector<std::string>> rows;  // each as long as columns
  std::vector<int64_t> lines;                  // line of the file where each row begins, from 1

  int64_t row_count() const { return static_cast<int64_t>(rows.size()); }
  // Index of a column, -1 when there is none of that name.
  int64_t find(std::string_view column) const;
  // Index of a column. Throws IoError naming the file and its columns when there is none.
  int64_t require(std::string_view column) const;
  const std::string& at(int64_t row, int64_t column) const {
    return rows[static_cast<size_t>(row)][static_cast<size_t>(column)];
  }
  // By name: throws as require() does.
  const std::string& at(int64_t row, std::string_view column) const { return at(row, require(column)); }
};

// Reads a table with a line of column names. Takes a byte-order mark, LF, CRLF and CR line ends, quoted fields with
// commas, quotes ("") and line breaks inside; skips blank lines. Throws IoError naming file and line: a row with
// another number of fields than columns, a quote that is not closed, text after a closing quote, a column name that
// occurs twice, no header, bytes that are no UTF-8 or ASCII table (UTF-16, a spreadsheet file), another separator than
// the comma; in a file whose name ends in .tsv, than the tab.
CsvTable read_csv(const std::string& path);
// The same from memory; `path` serves messages alone.
CsvTable parse_csv(std::string_view text, const std::string& path, char separator = ',');

// "FILE: row 3, column label (line 4)": where a message points to.
std::string place_in(const CsvTable& table, int64_t row, int64_t column);
std::string trimmed(std::string_view text);
// The field without spaces around it.
std::string field_at(const CsvTable& table, int64_t row, int64_t column);
// A finite number, written without anything around it.
std::optional<double> parse_number(std::string_view text);
// Throws IoError naming the place when the field is no finite number.
double number_at(const CsvTable& table, int64_t row, int64_t column);
// Order of the names in a column: numbers by value (2 before 10), then words by letter.
bool numbers_first(const std::string& a, const std::string& b);

// One field, quoted where it has to be.
std::string csv_field(const std::string& text);

}  // namespace pm::io
