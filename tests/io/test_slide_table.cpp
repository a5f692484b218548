#include <fmt/format.h>

#include <filesystem>
#include <map>

#include "io/data/slide_table.h"
#include "tests/io/pictures.h"
#include "tests/support/test.h"

namespace pm::test {
namespace fs = std::filesystem;
namespace {

io::TableOptions unseen() {  // no slide has to be there
  io::TableOptions options;
  options.find_slides = false;
  return options;
}

io::SlideTable table_of(const std::string& text, const io::TableOptions& options = unseen()) {
  const TempDir dir;
  write_bytes(dir.path() + "/t.csv", text);
  return io::read_slide_table(dir.path() + "/t.csv", options);
}

std::string rejection(const std::string& text, const io::TableOptions& options = unseen()) {
  return error_message([&] { table_of(text, options); });
}

std::string clinical(const std::string& name) { return data_dir() + "/clinical/" + name; }

std::map<std::string, int64_t> count_reasons(const io::SlideTable& table) {
  std::map<std::string, int64_t> counts;
  for (const io::SkippedRow& row : table.skipped) ++counts[row.reason];
  return counts;
}

}  // namespace

TEST_CASE("a slide table gives its rows", "[cpu]") {
  const io::SlideTable table = table_of(
      "case_id,slide_id,path,label,mpp\n"
      "c1,a.svs, a.svs ,0,0.5\n"
      "c1,b,/x/b.svs,0.0,\n"
      "c2,c,c.svs,2,\n");
  REQUIRE(table.rows.size() == 3);
  CHECK(table.has_labels);
  CHECK_FALSE(table.has_survival);
  CHECK(table.rows[0].slide_id == "a");
  CHECK(fs::path(table.rows[0].path).filename() == "a.svs");
  CHECK(fs::path(table.rows[0].path).is_absolute());
  CHECK(table.rows[1].path == "/x/b.svs");
  CHECK(table.rows[0].mpp == 0.5);
  CHECK_FALSE(table.rows[1].mpp.has_value());
  CHECK(table.rows[2].label == 2);
  CHECK(table.rows[2].row == 3);
  CHECK(table.class_names == std::vector<std::string>{"0", "1", "2"});
  CHECK(table.case_column == "case_id");
  const io::SlideTable bare = table_of("path\nx/a.svs\nb.tif\n");
  CHECK(bare.rows[0].slide_id == "a");
  CHECK(bare.rows[0].case_id == "a");
  CHECK(bare.cases_from_slides);
  CHECK_FALSE(bare.has_labels);
  const io::SlideTable same_names = table_of("path\nx/1.png\ny/1.png\n");
  CHECK(same_names.rows[0].slide_id == "x/1");
  CHECK(same_names.rows[1].case_id == "y/1");
}

TEST_CASE("survival columns under their published names", "[cpu]") {
  const std::string months =
      "case_id,path,survival_months,censorship,survival_months_dss,censorship_dss\n"
      "c1,a.svs,10.5,0,3,1\nc2,b.svs,0,1.0,4,0\n";
  const io::SlideTable overall = table_of(months);
  CHECK(overall.has_survival);
  CHECK(overall.rows[0].survival_months == 10.5);
  CHECK_FALSE(overall.rows[0].censored);
  CHECK(overall.rows[1].survival_months == 0.0);
  CHECK(overall.rows[1].censored);
  io::TableOptions options = unseen();
  options.endpoint = "DSS";
  const io::SlideTable specific = table_of(months, options);
  CHECK(specific.rows[0].survival_months == 3.0);
  CHECK(specific.rows[0].censored);
  CHECK(specific.time_column == "survival_months_dss");
  const io::SlideTable days = table_of("bcr_patient_barcode,OS,OS.time\np1,1,4005\np2,0,30\n");
  CHECK(days.rows[0].survival_months == 133.5);
  CHECK_FALSE(days.rows[0].censored);
  CHECK(days.rows[1].censored);
  options.endpoint = "pfi";
  CHECK(table_of(months, options).has_survival == false);
}

TEST_CASE("columns of any name, where the options say so", "[cpu]") {
  const std::string text =
      "image,id,patient,months,dead,alive,survival_months,fold_a,fold_b\n"
      "a.png,A,p1,12.5,1,0,7,0,1\nb.png,B,p2,3,0,1,7,1,0\nc.png,C,p3,,1,0,7,1,1\n";
  io::TableOptions options = unseen();
  options.path_column = "image";
  options.slide_column = "id";
  options.time_column = "months";
  options.event_column = "dead";
  options.fold_column = "fold_b";
  const io::SlideTable table = table_of(text, options);
  REQUIRE(table.rows.size() == 2);  // the third has no time: left out, and listed
  CHECK(count_reasons(table) == std::map<std::string, int64_t>{{"no months", 1}});
  CHECK(table.rows[0].slide_id == "A");
  CHECK(fs::path(table.rows[0].path).filename() == "a.png");
  CHECK(table.rows[0].survival_months == 12.5);
  CHECK_FALSE(table.rows[0].censored);
  CHECK(table.rows[1].censored);
  CHECK(table.rows[0].fold == "1");
  options.event_column = "";
  options.censorship_column = "alive";
  CHECK_FALSE(table_of(text, options).rows[0].censored);
  CHECK(table_of(text, options).rows[1].censored);
  options.fold_column = "fold_c";
  CHECK_THAT(rejection(text, options), ContainsSubstring("fold_c"));
  options.fold_column = "";
  CHECK(table_of(text, options).fold_column.empty());  // of two none is the obvious one
}

TEST_CASE("classes as numbers, stages and names", "[cpu]") {
  io::TableOptions options = unseen();
  options.label_column = "s";
  const io::SlideTable stages =
      table_of("path,s\na,Stage IIB\nb,IV\nc,Stage X\nd,stage iiic\ne,N/A\nf,I\ng,0\nh,[Discrepancy]\n", options);
  CHECK(stages.class_names == std::vector<std::string>{"I", "II", "III", "IV"});
  std::vector<int64_t> labels;
  for (const io::SlideRow& row : stages.rows) labels.push_back(*row.label);
  CHECK(labels == std::vector<int64_t>{1, 3, 2, 0});
  CHECK(count_reasons(stages) == std::map<std::string, int64_t>{{"no s", 4}});
  CHECK(stages.skipped[0].row == 3);
  const io::SlideTable names = table_of("slide_id,label\na,tumor_tissue\nb,normal_tissue\nc,tumor_tissue\n");
  CHECK(names.class_names == std::vector<std::string>{"normal_tissue", "tumor_tissue"});
  CHECK(names.rows[0].label == 1);
  // Which column is learnt from.
  const std::string both = "path,survival_months,censorship,stage\na,1,0,II\nb,2,1,I\n";
  CHECK_FALSE(table_of(both).has_labels);
  options = unseen();
  options.outcome = io::Outcome::classes;
  CHECK(table_of(both, options).label_column == "stage");
  CHECK_FALSE(table_of(both, options).has_survival);
  options.outcome = io::Outcome::none;
  CHECK_FALSE(table_of("path,label\na,?\n", options).has_labels);
}

TEST_CASE("bad slide tables are refused with row and column", "[cpu]") {
  const struct {
    const char* text;
    std::vector<const char*> expected;
  } cases[] = {
      {"", {"t.csv", "empty"}},
      {"case_id,path,label\n", {"t.csv", "no rows"}},
      {"name,label\na,1\n", {"needs a column 'path'", "name, label"}},
      {"path,label\na.svs,1\nb.svs,x\n", {"row 2", "line 3", "column label", "a number is needed, got 'x'"}},
      {"path,label\na.svs,x\n", {"row 1", "column label", "a number is needed"}},
      {"path,label\na.svs,1\nb.svs,\n", {"row 2", "column label", "got ''"}},
      {"path,label\na.svs,1.5\n", {"row 1", "column label", "whole numbers", "1.5"}},
      {"path,label\na.svs,-1\n", {"row 1", "column label", "-1"}},
      {"path,label\na.svs,nan\nb.svs,1\n", {"row 1", "column label", "nan"}},
      {"path,label\na.svs,1000000\n", {"row 1", "column label", "1000000"}},
      {"path,survival_months\na.svs,1\n", {"both columns", "censorship is missing"}},
      {"path,censorship\na.svs,1\n", {"both columns", "survival_months is missing"}},
      {"path,survival_months,censorship\na.svs,1,0\nb.svs,-3,0\n",
       {"row 2", "column survival_months", "not negative", "-3"}},
      {"path,survival_months,censorship\na.svs,soon,0\n", {"row 1", "column survival_months", "soon"}},
      {"path,survival_months,censorship\na.svs,,0\n", {"row 1", "column survival_months", "a number is needed"}},
      {"path,survival_months,censorship\na.svs,inf,0\n", {"row 1", "column survival_months", "inf"}},
      {"path,survival_months,censorship\na.svs,1,2\n",
       {"row 1", "column censorship", "1 (censored) or 0 (event seen)", "'2'"}},
      {"path,survival_months,censorship\na.svs,1,yes\n", {"row 1", "column censorship", "yes"}},
      {"path,OS,OS.time\na.svs,2,10\n", {"row 1", "column OS", "1 (event seen) or 0 (censored)"}},
      {"slide_id,path,label\ns,a.svs,0\ns,b.svs,1\n", {"row 2", "column slide_id", "slide s is there twice", "row 1"}},
      {"slide_id,path,label\ns.svs,a.svs,0\ns,b.svs,1\n", {"row 2", "slide s is there twice"}},
      {"slide_id,path,label\ns,a.svs,0\nt,./a.svs,1\n", {"row 2", "column path", "there twice", "row 1"}},
      {"slide_id,path,label\n,a.svs,0\n", {"row 1", "column slide_id", "an id is needed"}},
      {"case_id,path,label\n ,a.svs,0\n", {"row 1", "column case_id", "an id is needed"}},
      {"path,label\n,0\n", {"row 1", "column path", "a file is needed"}},
      {"path,mpp,label\na.svs,fast,0\n", {"row 1", "column mpp", "fast"}},
      {"path,mpp,label\na.svs,0,0\n", {"row 1", "column mpp", "above 0"}},
      {"case_id,path,label\nc,a.svs,0\nd,b.svs,1\nc,e.svs,1\n",
       {"row 3", "column label", "case c has another class in row 1"}},
      {"case_id,path,survival_months,censorship\nc,a.svs,1,0\nc,e.svs,2,0\n",
       {"row 2", "column survival_months", "case c"}},
      {"case_id,path,survival_months,censorship\nc,a.svs,1,0\nc,e.svs,1,1\n", {"row 2", "column censorship", "case c"}},
      {"path,label\na.svs\n", {"line 2", "1 fields"}},
      {"path;label\na.svs;1\n", {"semicolons"}},
      {"path,label,label\na.svs,1,1\n", {"occurs twice"}},
  };
  for (const auto& one : cases) {
    CAPTURE(one.text);
    const std::string message = rejection(one.text);
    CHECK_FALSE(message.empty());
    for (const char* part : one.expected) CHECK_THAT(message, ContainsSubstring(part));
  }
  CHECK_THAT(error_message([] { io::read_slide_table("/no/such.csv"); }), ContainsSubstring("/no/such.csv"));
  io::TableOptions options = unseen();
  options.label_column = "grade";
  CHECK_THAT(rejection("path,label\na,1\n", options), ContainsSubstring("no column 'grade'"));
  options.label_column = "label";
  options.outcome = io::Outcome::classes;
  CHECK_THAT(rejection("path,label\na,NA\nb,\n", options), ContainsSubstring("row 1"));
}

TEST_CASE("slides are looked for where the table or the option says", "[cpu]") {
  const TempDir dir;
  fs::create_directories(dir.path() + "/slides/deep");
  for (const char* name :
       {"/slides/P-1.svs", "/slides/deep/P-1-b.tif", "/slides/P-10.svs", "/slides/q.txt", "/slides/deep/R.PNG"}) {
    write_bytes(dir.path() + name, "x");
  }
  const auto read = [&](const std::string& text, io::TableOptions options) {
    write_bytes(dir.path() + "/t.csv", text);
    return io::read_slide_table(dir.path() + "/t.csv", options);
  };
  io::TableOptions options;
  CHECK(read("path,label\nslides/P-1.svs,1\n", options).rows[0].path == dir.path() + "/slides/P-1.svs");
  CHECK_THAT(error_message([&] { read("path,label\nslides/P-1.svs,1\nnone.svs,0\n", options); }),
             ContainsSubstring("row 2, column path (line 3): there is no file " + dir.path() + "/none.svs"));
  CHECK_THAT(error_message([&] { read("slide_id,label\nP-1,1\n", options); }), ContainsSubstring("--slides"));
  options.slides = dir.path() + "/slides";
  CHECK(read("path,label\ndeep/R.PNG,1\n", options).rows[0].path == dir.path() + "/slides/deep/R.PNG");
  const io::SlideTable by_id = read("slide_id,label\nP-1.svs,1\nP-1-b,0\nR,0\n", options);
  CHECK(by_id.rows[0].path == dir.path() + "/slides/P-1.svs");
  CHECK(by_id.rows[1].path == dir.path() + "/slides/deep/P-1-b.tif");
  CHECK(by_id.rows[2].path == dir.path() + "/slides/deep/R.PNG");
  CHECK_THAT(error_message([&] { read("slide_id,label\nP-1,1\nP-2,1\n", options); }),
             ContainsSubstring("row 2, column slide_id (line 3): there is no slide P-2 in"));
  // A table of cases: every slide of the case, and none of P-10 for P-1.
  const io::SlideTable by_case = read("case_id,stage\nP-1,II\nR,I\nP-1,II\n", options);
  REQUIRE(by_case.rows.size() == 3);
  CHECK(by_case.rows[0].slide_id == "P-1");
  CHECK(by_case.rows[1].slide_id == "P-1-b");
  CHECK(by_case.rows[1].case_id == "P-1");
  CHECK(by_case.rows[2].slide_id == "R");
  CHECK_THAT(error_message([&] { read("case_id,stage\nP-1,II\nP-1,I\n", options); }),
             ContainsSubstring("case P-1 has another class"));
  CHECK_THAT(error_message([&] { read("case_id,stage\nP-1,II\nZ,I\n", options); }),
             ContainsSubstring("no slide of case Z"));
  options.skip_missing = true;
  const io::SlideTable part = read("slide_id,label\nP-1,1\nP-2,1\nR,\n", options);
  CHECK(part.rows.size() == 1);
  CHECK(count_reasons(part) == std::map<std::string, int64_t>{{"no file", 1}, {"no label", 1}});
  CHECK_THAT(error_message([&] { read("slide_id,label\nP-2,1\n", options); }), ContainsSubstring("no row is left"));
  write_bytes(dir.path() + "/slides/deep/P-1.tif", "x");
  CHECK(read("slide_id,label\nP-1.svs,1\n", options).rows[0].path == dir.path() + "/slides/P-1.svs");
  CHECK_THAT(error_message([&] { read("slide_id,label\nP-1,1\n", options); }), ContainsSubstring("more than once"));
  options.slides = dir.path() + "/none";
  CHECK_THAT(error_message([&] { read("slide_id,label\nP-1,1\n", options); }), ContainsSubstring("no such folder"));
}

TEST_CASE("what infer is given: a file, a folder, a table", "[cpu]") {
  const TempDir dir;
  for (const char* name : {"/b.svs", "/a.png", "/notes.txt"}) write_bytes(dir.path() + name, "x");
  CHECK(io::list_slides(dir.path() + "/b.svs")[0].slide_id == "b");
  const std::vector<io::SlideRow> rows = io::list_slides(dir.path());
  REQUIRE(rows.size() == 2);
  CHECK(rows[0].slide_id == "a");
  write_bytes(dir.path() + "/t.csv", "path,label\nb.svs,?\ngone.svs,?\n");  // labels do not matter here
  CHECK(io::list_slides(dir.path() + "/t.csv").size() == 2);
  write_bytes(dir.path() + "/t.csv", "slide_id\nb\n");
  CHECK_THAT(error_message([&] { io::list_slides(dir.path() + "/t.csv"); }), ContainsSubstring("column 'path'"));
}

TEST_CASE("time bins are cut at quantiles of event times, one per case", "[cpu]") {
  const auto row = [](const std::string& id, double months, bool censored) {
    io::SlideRow one;
    one.case_id = id;
    one.survival_months = months;
    one.censored = censored;
    return one;
  };
  std::vector<io::SlideRow> rows;
  for (int i = 1; i <= 9; ++i) rows.push_back(row(fmt::format("c{}", i), i, false));
  rows.push_back(row("late", 100.0, true));
  for (int i = 0; i < 5; ++i) rows.push_back(row("c9", 9.0, false));  // more slides of one case change nothing
  const std::vector<double> cuts = io::survival_cuts(rows, 4);
  CHECK(cuts == std::vector<double>{3.0, 5.0, 7.0});
  CHECK(io::survival_bin(0.0, cuts) == 0);
  CHECK(io::survival_bin(3.0, cuts) == 1);
  CHECK(io::survival_bin(6.999, cuts) == 2);
  CHECK(io::survival_bin(100.0, cuts) == 3);

  // Ties that plain quantiles (all three cuts at 1) would make three empty bins of.
  rows.clear();
  for (int i = 0; i < 20; ++i) rows.push_back(row(fmt::format("t{}", i), i < 17 ? 1.0 : i - 15, false));
  const std::vector<double> tied = io::survival_cuts(rows, 4);
  CHECK(tied == std::vector<double>{2.0, 3.0, 4.0});
  std::vector<int64_t> events(4);
  for (const io::SlideRow& one : rows) ++events[static_cast<size_t>(io::survival_bin(*one.survival_months, tied))];
  CHECK(events == std::vector<int64_t>{17, 1, 1, 1});
  // Fewer different times than bins: no cut can help, none is made up.
  rows = {row("a", 5.0, false), row("b", 5.0, false)};
  CHECK(io::survival_cuts(rows, 4) == std::vector<double>{5.0, 5.0, 5.0});
  rows = {row("a", 5.0, true)};
  CHECK_THAT(error_message([&] { io::survival_cuts(rows, 4); }), ContainsSubstring("no event"));
}

TEST_CASE("published tables load as they are", "[data]") {
  const io::SlideTable survpath = io::read_slide_table(clinical("survpath/metadata/tcga_brca.csv"), unseen());
  CHECK(survpath.rows.size() == 931);
  CHECK(survpath.has_survival);
  CHECK(survpath.rows[0].case_id == "TCGA-3C-AALI");
  CHECK(survpath.rows[0].slide_id == "TCGA-3C-AALI-01Z-00-DX1.F6E9A5DF-D8FB-45CF-B4BD-C6B76294C291");
  CHECK(survpath.rows[0].survival_months == 133.5);
  CHECK(survpath.rows[0].censored);
  for (const char* name : {"blca", "coadread"}) {
    io::TableOptions options = unseen();
    options.endpoint = "dss";
    CHECK(io::read_slide_table(clinical(fmt::format("survpath/metadata/tcga_{}.csv", name)), options).has_survival);
  }
  const io::SlideTable stages =
      io::read_slide_table(clinical("survpath/clinical_data/tcga_brca_clinical.csv"), unseen());
  CHECK(stages.label_column == "stage");
  CHECK(stages.class_names == std::vector<std::string>{"I", "II", "III", "IV"});
  CHECK(stages.skipped.size() == 7);  // 4 N/A, 3 "0"
  CHECK(stages.rows.size() == 1094);  // 1101 cases, seven rows repeat one

  const io::SlideTable cdr = io::read_slide_table(clinical("tcga_brca_cdr/phenotypes.tsv"), unseen());
  CHECK(cdr.has_survival);
  CHECK(cdr.rows.size() == 1096);
  CHECK(cdr.skipped.size() == 1);
  int64_t events = 0;
  for (const io::SlideRow& row : cdr.rows) events += row.censored ? 0 : 1;
  CHECK(events == 151);
  // The two publications agree about the patients they share.
  std::map<std::string, const io::SlideRow*> by_case;
  for (const io::SlideRow& row : cdr.rows) by_case[row.case_id] = &row;
  int64_t shared = 0, same = 0;
  for (const io::SlideRow& row : survpath.rows) {
    const auto found = by_case.find(row.case_id);
    if (found == by_case.end()) continue;
    ++shared;
    same += *found->second->survival_months == Approx(*row.survival_months) && found->second->censored == row.censored
                ? 1
                : 0;
  }
  CHECK(shared > 900);
  CHECK(same > shared * 95 / 100);
  io::TableOptions options = unseen();
  options.outcome = io::Outcome::classes;
  const io::SlideTable cdr_stages = io::read_slide_table(clinical("tcga_brca_cdr/phenotypes.tsv"), options);
  CHECK(cdr_stages.label_column == "ajcc_pathologic_tumor_stage");
  CHECK(cdr_stages.skipped.size() == 24);  // 13 Stage X, 6 [Discrepancy], 5 empty
}

TEST_CASE("a folder of slides serves a published table of cases", "[data]") {
  io::TableOptions options;
  options.slides = data_dir() + "/tcga_brca_tumour_maps/pyramid_1bit";
  options.skip_missing = true;
  const io::SlideTable table = io::read_slide_table(clinical("survpath/clinical_data/tcga_brca_clinical.csv"), options);
  int64_t files = 0;
  for (const auto& entry : fs::directory_iterator(options.slides)) files += entry.path().extension() == ".tif" ? 1 : 0;
  CHECK(files > 0);
  CHECK(static_cast<int64_t>(table.rows.size()) <= files);
  CHECK(static_cast<int64_t>(table.rows.size()) >= files - 2);  // the rest have no stage
  for (const io::SlideRow& row : table.rows) CHECK(row.slide_id.starts_with(row.case_id + "-"));
}

}  // namespace pm::test
