#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <set>

#include "io/data/cohort.h"
#include "io/slide/tiff_writer.h"
#include "tests/io/pictures.h"
#include "tests/support/test.h"

namespace pm::test {
namespace fs = std::filesystem;
namespace {

io::TableOptions unseen() {
  io::TableOptions options;
  options.find_slides = false;
  return options;
}

io::Cohort cohort_of(const std::string& text, const io::TableOptions& options = unseen()) {
  const TempDir dir;
  write_bytes(dir.path() + "/t.csv", text);
  return io::read_cohort(dir.path() + "/t.csv", options);
}

// Ten cases c0..c9, c0 with two slides; three events.
std::string small_table() {
  std::string text = "case_id,slide_id,path,survival_months,censorship\n";
  for (int i = 0; i < 10; ++i) text += fmt::format("c{0},s{0},s{0}.tif,{1},{2}\n", i, 10 + i, i < 3 ? 0 : 1);
  return text + "c0,s0b,s0b.tif,10,0\n";
}

std::vector<io::Fold> splits_of(const io::Cohort& cohort, const std::string& text, bool skip_unknown = false) {
  const TempDir dir;
  write_bytes(dir.path() + "/splits_3.csv", text);
  return io::read_splits(dir.path() + "/splits_3.csv", cohort, skip_unknown);
}

std::string split_rejection(const std::string& text) {
  const io::Cohort cohort = cohort_of(small_table());
  return error_message([&] { splits_of(cohort, text); });
}

std::set<int64_t> cases_of(const io::Cohort& cohort, const std::vector<int64_t>& members) {
  std::set<int64_t> cases;
  for (const int64_t slide : members) cases.insert(cohort.case_of[static_cast<size_t>(slide)]);
  return cases;
}

// Every slide once per fold, no case in two sets, every case held out exactly once.
void check_partition(const io::Cohort& cohort, const std::vector<io::Fold>& folds) {
  std::vector<int> held_out(cohort.cases.size());
  for (const io::Fold& fold : folds) {
    CHECK(fold.train.size() + fold.val.size() == cohort.slides().size());
    const std::set<int64_t> train = cases_of(cohort, fold.train), val = cases_of(cohort, fold.val);
    std::vector<int64_t> both;
    std::set_intersection(train.begin(), train.end(), val.begin(), val.end(), std::back_inserter(both));
    CHECK(both.empty());
    for (const int64_t index : val) ++held_out[static_cast<size_t>(index)];
  }
  CHECK(std::all_of(held_out.begin(), held_out.end(), [](int count) { return count == 1; }));
}

}  // namespace

TEST_CASE("slides are grouped by case", "[cpu]") {
  const io::Cohort cohort = cohort_of(small_table());
  CHECK(cohort.outcome == io::Outcome::survival);
  REQUIRE(cohort.cases.size() == 10);
  CHECK(cohort.cases[0].slides == std::vector<int64_t>{0, 10});
  CHECK(cohort.case_of[10] == 0);
  CHECK(cohort.cases[4].survival_months == 14.0);
  CHECK(cohort.cases[4].censored);
  io::TableOptions options = unseen();
  options.outcome = io::Outcome::classes;
  CHECK_THAT(error_message([&] { cohort_of(small_table(), options); }), ContainsSubstring("column label"));
  options.outcome = io::Outcome::survival;
  CHECK_THAT(error_message([&] { cohort_of("path,label\na,1\n", options); }),
             ContainsSubstring("survival_months and censorship"));
  CHECK_THAT(error_message([&] { cohort_of("path,grade\na,1\n"); }), ContainsSubstring("nothing to learn"));
}

TEST_CASE("split files hold case or slide ids", "[cpu]") {
  const io::Cohort cohort = cohort_of(small_table());
  const io::Fold by_case = splits_of(cohort, ",train,val\n0,c0,c2\n1,c1,\n")[0];
  CHECK(by_case.name == "3");
  CHECK(by_case.train == std::vector<int64_t>{0, 1, 10});
  CHECK(by_case.val == std::vector<int64_t>{2});
  CHECK(&by_case.held_out() == &by_case.val);
  const io::Fold by_slide = splits_of(cohort, "train,val,test\ns0b.svs,s2,s4\ns1,s3,\n")[0];
  CHECK(by_slide.train == std::vector<int64_t>{1, 10});
  CHECK(by_slide.test == std::vector<int64_t>{4});
  CHECK(&by_slide.held_out() == &by_slide.test);
  CHECK(splits_of(cohort, "train,val\nc0,c1\nx9,c2\n", true)[0].unknown_ids == 1);

  const TempDir dir;
  for (const int k : {10, 2, 0})
    write_bytes(fmt::format("{}/splits_{}.csv", dir.path(), k), fmt::format("train,val\nc0,c{}\n", k % 9 + 1));
  write_bytes(dir.path() + "/splits_0_bool.csv", ",train,val,test\ns1,True,False,False\n");
  const std::vector<io::Fold> folds = io::read_splits(dir.path(), cohort);
  REQUIRE(folds.size() == 3);
  CHECK(folds[1].name == "2");
  CHECK(folds[2].name == "10");
}

TEST_CASE("bad splits are refused with row and column", "[cpu]") {
  const struct {
    const char* text;
    std::vector<const char*> expected;
  } cases[] = {
      {"train,val\nc0,c1\nc2,c0\n", {"row 2", "column val", "case c0 is in two sets", "row 1, column train"}},
      {"train,val,test\nc0,c1,c2\nc3,,c1\n", {"row 2", "column test", "case c1 is in two sets", "column val"}},
      {"train,val\ns0,s1\ns2,s0b\n", {"row 2", "column val", "case c0 is in two sets", "s0b", "s0"}},
      {"train,val\nc0,c1\nc2,c77\n", {"row 2, column val (line 3)", "no case c77", "t.csv"}},
      {"train,val\ns0,s1\ns2,s77\n", {"row 2", "column val", "no slide s77"}},
      {"train,val\nc0,c1\nc0,c2\n", {"row 2", "column train", "c0 is there twice", "row 1"}},
      {"train,test\nc0,c1\n", {"no column 'val'"}},
      {"val\nc0\n", {"no column 'train'"}},
      {"train,val,tset\nc0,c1,c2\n", {"unknown column 'tset'"}},
      {"train,val\n", {"no rows"}},
      {"train,val\n,c1\n", {"column train names no slide"}},
      {"train,val\nc1,\n", {"column val names no slide"}},
      {"", {"empty"}},
  };
  for (const auto& one : cases) {
    CAPTURE(one.text);
    const std::string message = split_rejection(one.text);
    CHECK_FALSE(message.empty());
    for (const char* part : one.expected) CHECK_THAT(message, ContainsSubstring(part));
  }
  const io::Cohort cohort = cohort_of(small_table());
  const TempDir dir;
  CHECK_THAT(error_message([&] { io::read_splits(dir.path(), cohort); }), ContainsSubstring("holds no splits_0.csv"));
  CHECK_THAT(error_message([&] { io::read_splits(dir.path() + "/none", cohort); }),
             ContainsSubstring("no such file or folder"));
}

TEST_CASE("folds are dealt by case, stratified, from the seed", "[cpu]") {
  std::string text = "case_id,slide_id,path,label\n";
  for (int i = 0; i < 103; ++i) {
    for (int k = 0; k <= i % 3; ++k)
      text += fmt::format("c{0},s{0}_{1},s{0}_{1}.tif,{2}\n", i, k, i < 60 ? 0 : i < 90 ? 1 : 2);
  }
  const io::Cohort cohort = cohort_of(text);
  const std::vector<io::Fold> folds = io::make_folds(cohort, 5, 7);
  REQUIRE(folds.size() == 5);
  check_partition(cohort, folds);
  for (const io::Fold& fold : folds) {
    std::vector<int64_t> counts(3);
    for (const int64_t index : cases_of(cohort, fold.val))
      ++counts[static_cast<size_t>(*cohort.cases[static_cast<size_t>(index)].label)];
    CHECK(counts[0] == 12);
    CHECK(counts[1] == 6);
    CHECK((counts[2] == 2 || counts[2] == 3));
  }
  const std::vector<io::Fold> again = io::make_folds(cohort, 5, 7), other = io::make_folds(cohort, 5, 8);
  CHECK(again[0].val == folds[0].val);
  CHECK(other[0].val != folds[0].val);

  // Rows in another order: the same cases in the same folds.
  std::vector<std::string> lines;
  for (size_t at = text.find('\n') + 1; at < text.size(); at = text.find('\n', at) + 1)
    lines.push_back(text.substr(at, text.find('\n', at) + 1 - at));
  std::string reversed = text.substr(0, text.find('\n') + 1);
  for (auto line = lines.rbegin(); line != lines.rend(); ++line) reversed += *line;
  const io::Cohort mirrored = cohort_of(reversed);
  const auto names = [](const io::Cohort& of, const io::Fold& fold) {
    std::set<std::string> ids;
    for (const int64_t slide : fold.val) ids.insert(of.slides()[static_cast<size_t>(slide)].slide_id);
    return ids;
  };
  const std::vector<io::Fold> turned = io::make_folds(mirrored, 5, 7);
  for (size_t k = 0; k < 5; ++k) CHECK(names(cohort, folds[k]) == names(mirrored, turned[k]));

  const io::Cohort survival = cohort_of(small_table());
  for (const io::Fold& fold : io::make_folds(survival, 3, 1)) {
    int64_t events = 0;
    for (const int64_t index : cases_of(survival, fold.val))
      events += survival.cases[static_cast<size_t>(index)].censored ? 0 : 1;
    CHECK(events == 1);
  }
  CHECK_THAT(error_message([&] { io::make_folds(survival, 11, 1); }),
             ContainsSubstring("10 cases cannot be divided into 11 folds"));
  CHECK_THAT(error_message([&] { io::make_folds(survival, 1, 1); }), ContainsSubstring("at least 2 folds"));
}

TEST_CASE("a fold column gives the folds", "[cpu]") {
  const io::Cohort cohort =
      cohort_of("case_id,path,label,fold\na,1.svs,0,10\nb,2.svs,1,2\na,3.svs,0,10\nc,4.svs,0,2\n");
  const std::vector<io::Fold> folds = io::column_folds(cohort);
  REQUIRE(folds.size() == 2);
  CHECK(folds[0].name == "2");
  CHECK(folds[0].val == std::vector<int64_t>{1, 3});
  CHECK(folds[1].val == std::vector<int64_t>{0, 2});
  check_partition(cohort, folds);
  const auto rejection = [](const std::string& text) {
    return error_message([&] { io::column_folds(cohort_of(text)); });
  };
  CHECK_THAT(rejection("path,label\na,1\n"), ContainsSubstring("no column 'fold'"));
  CHECK_THAT(rejection("path,label,fold\na,1,0\nb,0,\n"), ContainsSubstring("row 2, column fold"));
  CHECK_THAT(rejection("path,label,fold\na,1,0\nb,0,0\n"), ContainsSubstring("at least two folds"));
  CHECK_THAT(rejection("case_id,path,label,fold\nc,a,1,0\nd,b,0,1\nc,e,1,1\n"),
             ContainsSubstring("case c is in two folds"));
  CHECK_THAT(rejection("path,label,fold_a,fold_b\na,1,0,1\n"), ContainsSubstring("no column 'fold'"));
}

TEST_CASE("the label audit counts what every set holds", "[cpu]") {
  const io::Cohort cohort = cohort_of(small_table());
  const io::LabelAudit audit = io::audit_labels(cohort, splits_of(cohort, "train,val\nc0,c6\nc1,c7\nc4,\nc5,\n"), 4);
  CHECK(audit.all.cases == 10);
  CHECK(audit.all.slides == 11);
  CHECK(audit.all.events == 3);
  REQUIRE(audit.folds.size() == 1);
  const io::FoldAudit& fold = audit.folds[0];
  CHECK(fold.train.cases == 4);
  CHECK(fold.train.slides == 5);
  CHECK(fold.train.events == 2);
  CHECK(fold.val.events == 0);
  CHECK(fold.unused_cases == 4);
  CHECK(fold.cuts == std::vector<double>{10.25, 10.5, 10.75});  // from c0 and c1 alone
  CHECK(fold.train.bin_cases == std::vector<int64_t>{1, 0, 0, 3});
  CHECK(fold.train.bin_events == std::vector<int64_t>{1, 0, 0, 1});
  CHECK(fold.val.bin_cases == std::vector<int64_t>{0, 0, 0, 2});
  const auto warned = [](const io::LabelAudit& of, const std::string& part) {
    return std::any_of(of.warnings.begin(), of.warnings.end(),
                       [&](const std::string& text) { return text.find(part) != text.npos; });
  };
  CHECK(warned(audit, "the validation set has no event"));
  CHECK(warned(audit, "time bin 2 of 4 has no event"));

  const io::Cohort classes = cohort_of("slide_id,label\na,x\nb,y\nc,x\nd,y\n");
  const io::LabelAudit by_class = io::audit_labels(classes, splits_of(classes, "train,val\na,d\nc,\n"), 4);
  CHECK(by_class.folds[0].train.class_cases == std::vector<int64_t>{2, 0});
  CHECK(by_class.all.class_slides == std::vector<int64_t>{2, 2});
  CHECK(by_class.all.bin_cases.empty());
  CHECK(warned(by_class, "training set has no case of class y"));
  CHECK(warned(by_class, "no column of cases"));
}

TEST_CASE("the check opens every slide and says what is wrong with each", "[cpu]") {
  const TempDir dir;
  io::write_pyramid_tiff(dir.path() + "/good.tif", picture(600, 300), 2.0);
  write_bytes(dir.path() + "/text.svs", "not a slide");
  write_bytes(dir.path() + "/empty.svs", "");
  std::vector<io::SlideRow> rows(4);
  for (size_t i = 0; i < 4; ++i)
    rows[i].path = dir.path() + std::vector<const char*>{"/good.tif", "/text.svs", "/empty.svs", "/gone.svs"}[i];
  for (const bool decode : {false, true}) {
    io::SlideCheckOptions options;
    options.decode = decode;
    const std::vector<io::SlideCheck> checks = io::check_slides(rows, options);
    REQUIRE(checks.size() == 4);
    CHECK(checks[0].error.empty());
    CHECK(checks[0].width == 300);
    CHECK(checks[0].height == 150);
    CHECK(checks[0].mpp == Approx(2.0));
    CHECK(checks[0].tiles == (decode ? 6 : 0));
    for (size_t i = 1; i < 4; ++i) {
      CHECK(checks[i].slide == static_cast<int64_t>(i));
      CHECK_THAT(checks[i].error, ContainsSubstring(rows[i].path));
    }
  }
  std::stop_source stop;
  stop.request_stop();
  io::SlideCheckOptions options;
  options.stop = stop.get_token();
  CHECK(io::check_slides(rows, options).empty());
}

TEST_CASE("published splits fit their tables", "[data]") {
  const std::string clinical = data_dir() + "/clinical";
  for (const char* name : {"brca", "blca", "coadread"}) {
    const io::Cohort cohort =
        io::read_cohort(fmt::format("{}/survpath/metadata/tcga_{}.csv", clinical, name), unseen());
    const std::vector<io::Fold> folds =
        io::read_splits(fmt::format("{}/survpath/splits/tcga_{}", clinical, name), cohort);
    CHECK(folds.size() == 5);
    check_partition(cohort, folds);
    const io::LabelAudit audit = io::audit_labels(cohort, folds, 4);
    for (const io::FoldAudit& fold : audit.folds) {
      CHECK(fold.train.events + fold.val.events == audit.all.events);
      const auto [fewest, most] = std::minmax_element(fold.train.bin_events.begin(), fold.train.bin_events.end());
      CHECK(*most - *fewest <= 2);
    }
  }
  // MCAT's split of BRCA holds 85 cases that SurvPath's table does not.
  const io::Cohort brca = io::read_cohort(clinical + "/survpath/metadata/tcga_brca.csv", unseen());
  CHECK_THAT(error_message([&] { io::read_splits(clinical + "/mcat_splits/tcga_brca", brca); }),
             ContainsSubstring("there is no case TCGA-"));
  const std::vector<io::Fold> mcat = io::read_splits(clinical + "/mcat_splits/tcga_brca", brca, true);
  CHECK(mcat[0].unknown_ids == 85);
  check_partition(brca, mcat);
  // Cases without a stage are in the published splits: passed over, not unknown.
  const io::Cohort stages = io::read_cohort(clinical + "/survpath/clinical_data/tcga_brca_clinical.csv", unseen());
  const std::vector<io::Fold> staged = io::read_splits(clinical + "/survpath/splits/tcga_brca", stages);
  CHECK(staged[0].unknown_ids == 0);
}

TEST_CASE("the tumour-area maps are a cohort with folds", "[data]") {
  const std::string table = data_dir() + "/tcga_brca_tumour_maps/labels.csv";
  const io::Cohort cohort = io::read_cohort(table);
  CHECK(cohort.outcome == io::Outcome::survival);
  CHECK(cohort.slides().size() == 752);
  CHECK(cohort.cases.size() == 704);
  const std::vector<io::Fold> folds = io::column_folds(cohort);
  CHECK(folds.size() == 4);
  check_partition(cohort, folds);
  io::TableOptions options;
  options.label_column = "t_category";
  const io::Cohort categories = io::read_cohort(table, options);
  CHECK(categories.outcome == io::Outcome::classes);
  CHECK(categories.table.class_names == std::vector<std::string>{"T1", "T2", "T3", "T4"});
  CHECK(categories.table.skipped.size() == 1);
  options.label_column = "ajcc_stage";
  CHECK(io::read_cohort(table, options).table.skipped.size() == 16);
  std::vector<io::SlideRow> some(cohort.slides().begin(), cohort.slides().begin() + 20);
  for (const io::SlideCheck& check : io::check_slides(some, {})) CHECK(check.error.empty());
}

TEST_CASE("the check names the fault of every bad slide", "[data]") {
  std::vector<io::SlideRow> rows;
  for (const auto& entry : fs::directory_iterator(data_dir() + "/slides_bad")) {
    if (!entry.is_regular_file() || entry.path().extension() == ".md") continue;
    rows.emplace_back().path = entry.path().string();
  }
  rows.emplace_back().path = data_dir() + "/slides_bad/mrxs_and_vms_stubs/Mirax2-Fluorescence-1.mrxs";
  REQUIRE(rows.size() >= 8);
  io::SlideCheckOptions options;
  options.decode = true;
  options.slide_mpp = 0.5;
  const std::vector<io::SlideCheck> checks = io::check_slides(rows, options);
  REQUIRE(checks.size() == rows.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    CAPTURE(rows[i].path, checks[i].error);
    const bool readable = rows[i].path.find("fails_at_level1") != std::string::npos;  // its other levels are sound
    if (!readable) CHECK_THAT(checks[i].error, ContainsSubstring(rows[i].path));
  }
}

}  // namespace pm::test
