#include <algorithm>
#include <filesystem>

#include "engine/core/error.h"
#include "io/data/atomic_file.h"
#include "io/data/csv.h"
#include "tests/support/test.h"

namespace pm::test {
namespace fs = std::filesystem;

TEST_CASE("csv takes what spreadsheet programs write", "[cpu]") {
  const io::CsvTable table =
      io::parse_csv("\xEF\xBB\xBFid,text,n\r\n\r\na,\"x, \"\"y\"\"\r\nz\",1\r\nb,,\n\"\",plain \"in\" side,3", "t.csv");
  CHECK(table.columns == std::vector<std::string>{"id", "text", "n"});
  REQUIRE(table.row_count() == 3);
  CHECK(table.at(0, "text") == "x, \"y\"\r\nz");
  CHECK(table.rows[1] == std::vector<std::string>{"b", "", ""});
  CHECK(table.rows[2] == std::vector<std::string>{"", "plain \"in\" side", "3"});
  CHECK(table.lines == std::vector<int64_t>{3, 5, 6});
  CHECK(table.find("n") == 2);
  CHECK(table.find("N") == -1);
  CHECK_THROWS_WITH(table.at(0, "label"),
                    ContainsSubstring("t.csv") && ContainsSubstring("'label'") && ContainsSubstring("id, text, n"));
}

TEST_CASE("csv line ends may be LF, CRLF or CR and the last may miss", "[cpu]") {
  const std::string end = GENERATE("\n", "\r\n", "\r");
  const bool last = GENERATE(true, false);
  const io::CsvTable table =
      io::parse_csv(std::string("a,b") + end + "1,2" + end + end + "3," + (last ? end : ""), "t.csv");
  CHECK(table.rows == std::vector<std::vector<std::string>>{{"1", "2"}, {"3", ""}});
  CHECK(table.lines == std::vector<int64_t>{2, 4});
}

TEST_CASE("csv names file and line of what is wrong", "[cpu]") {
  struct Case {
    std::string text;
    const char* message;
  };
  const Case bad = GENERATE(values<Case>({
      {"a,b\n1,2\n3\n", "t.csv: line 3: 1 fields, the header has 2 columns"},
      {"a,b\n\"1\n1\",2\n3,4,5\n", "t.csv: line 4: 3 fields"},
      {"a,b\n1,\"2\n3,4\n", "t.csv: line 2: a quoted field is not closed"},
      {"a,b\n1,\"2\"3\n", "t.csv: line 2: a comma or the end of the line"},
      {"a,a\n1,2\n", "the column 'a' occurs twice"},
      {"", "is empty"},
      {"\n\r\n", "is empty"},
      {"a;b\n1;2\n", "separated by semicolons"},
      {"a\tb\n1\t2\n", "separated by tabs"},
      {"PK\x03\x04", "export the sheet as CSV"},
      {std::string("\xFF\xFE") + "a", "UTF-16"},
      {std::string("a,b\n\0,1\n", 8), "binary file"},
  }));
  CAPTURE(bad.text);
  CHECK_THROWS_AS(io::parse_csv(bad.text, "t.csv"), IoError);
  CHECK_THROWS_WITH(io::parse_csv(bad.text, "t.csv"), ContainsSubstring(bad.message));
}

TEST_CASE("csv fields written are read back", "[cpu]") {
  const TempDir dir;
  const std::vector<std::string> fields = {"plain", "", "a,b", "say \"x\"", "two\nlines", "\r\n", " edge ", "\""};
  std::string text = "a,b,c,d,e,f,g,h\n";
  for (const std::string& field : fields)
    text.append(&field == &fields.front() ? "" : ",").append(io::csv_field(field));
  io::write_file_atomically(dir.path() + "/t.csv", text + "\n");
  const io::CsvTable table = io::read_csv(dir.path() + "/t.csv");
  REQUIRE(table.row_count() == 1);
  CHECK(table.rows[0] == fields);
  CHECK(io::csv_field("plain") == "plain");
}

TEST_CASE("csv numbers are whole fields, and a message says where they are not", "[cpu]") {
  const io::CsvTable table = io::parse_csv("id,n\na, 1.5e1 \nb,2x\nc, \nd,inf\n", "t.csv");
  CHECK(io::number_at(table, 0, 1) == 15.0);
  CHECK_THROWS_WITH(io::number_at(table, 1, 1), "t.csv: row 2, column n (line 3): a number is needed, got '2x'");
  CHECK_THROWS_WITH(io::number_at(table, 2, 1), "t.csv: row 3, column n (line 4): a number is needed, got nothing");
  CHECK_THROWS_AS(io::number_at(table, 3, 1), IoError);
  for (const char* text : {"", " 1", "1 ", "nan", "1e999", "1,5", "0x10"}) {
    CAPTURE(text);
    CHECK_FALSE(io::parse_number(text));
  }
}

TEST_CASE("csv names are ordered by number, then by letter", "[cpu]") {
  std::vector<std::string> names = {"b", "10", "a", "2", "2.0", "-1"};
  std::sort(names.begin(), names.end(), io::numbers_first);
  CHECK(names == std::vector<std::string>{"-1", "2", "2.0", "10", "a", "b"});
}

TEST_CASE("csv files are tab-separated where their names end in tsv, in either case", "[cpu]") {
  const TempDir dir;
  const std::string path = dir.path() + GENERATE("/t.tsv", "/T.TSV");
  io::write_file_atomically(path, "a\tb\n1,5\t2\n");
  CHECK(io::read_csv(path).rows == std::vector<std::vector<std::string>>{{"1,5", "2"}});
}

TEST_CASE("csv tables as published are read", "[cpu][data]") {
  int files = 0;
  for (const auto& file : fs::recursive_directory_iterator(data_dir())) {
    if (file.path().extension() != ".csv") continue;
    CAPTURE(file.path().string());
    io::CsvTable table;
    CHECK_NOTHROW(table = io::read_csv(file.path().string()));
    CHECK(table.row_count() > 0);
    ++files;
  }
  CHECK(files > 0);
}

}  // namespace pm::test
