// The part of cohort.h that divides a cohort: split files, dealt folds, a fold column.
#include <algorithm>
#include <charconv>
#include <filesystem>
#include <map>
#include <set>

#include "engine/core/check.h"
#include "engine/core/philox.h"
#include "io/data/cohort.h"
#include "io/data/csv.h"
#include "io/data/slide_files.h"
#include "io/data/table_outcome.h"

namespace pm::io {
namespace fs = std::filesystem;
namespace {

constexpr const char* kSets[] = {"train", "val", "test"};
constexpr uint64_t kFoldStream = 0x666f6c64;  // "fold": apart from other uses of the seed

// One id of a split file and where it stands.
struct Entry {
  std::string id;
  int64_t row, column;
  int set;
};

class SplitFile {
 public:
  SplitFile(const std::string& path, const Cohort& cohort, bool skip_unknown)
      : csv_(read_csv(path)), cohort_(cohort), skip_unknown_(skip_unknown) {
    for (size_t i = 0; i < cohort.cases.size(); ++i) cases_.emplace(cohort.cases[i].id, static_cast<int64_t>(i));
    for (size_t i = 0; i < cohort.slides().size(); ++i)
      slides_.emplace(cohort.slides()[i].slide_id, static_cast<int64_t>(i));
    for (const SkippedRow& row : cohort.table.skipped) {
      skipped_.insert(row.case_id);
      skipped_.insert(row.slide_id);
    }
    skipped_.erase("");
  }

  Fold read(const std::string& name) {
    PM_CHECK(!csv_.rows.empty(), IoError, "{}: the table has no rows", csv_.path);
    collect();
    const bool by_case = holds_cases();
    Fold fold;
    fold.name = name;
    for (const Entry& entry : entries_) {
      std::vector<int64_t>& members = entry.set == 0 ? fold.train : entry.set == 1 ? fold.val : fold.test;
      const std::vector<int64_t> found = find(entry, by_case, fold.unknown_ids);
      members.insert(members.end(), found.begin(), found.end());
    }
    for (std::vector<int64_t>* members : {&fold.train, &fold.val, &fold.test})
      std::sort(members->begin(), members->end());
    PM_CHECK(!fold.train.empty(), IoError, "{}: column train names no slide of {}", csv_.path, cohort_.table.file);
    PM_CHECK(!fold.val.empty() || !fold.test.empty(), IoError, "{}: column val names no slide of {}", csv_.path,
             cohort_.table.file);
    return fold;
  }

 private:
  void collect() {
    csv_.require("train");
    csv_.require("val");
    for (size_t c = 0; c < csv_.columns.size(); ++c) {
      const std::string& name = csv_.columns[c];
      if (name.empty() || name == "index" || name.starts_with("Unnamed")) continue;  // numbers of rows
      const auto set = std::find(std::begin(kSets), std::end(kSets), name);
      PM_CHECK(set != std::end(kSets), IoError, "{}: unknown column '{}'; splits have train, val and, if wanted, test",
               csv_.path, name);
      for (int64_t i = 0; i < csv_.row_count(); ++i) {
        const std::string id = field_at(csv_, i, static_cast<int64_t>(c));
        if (is_missing(id)) continue;
        entries_.push_back({id, i, static_cast<int64_t>(c), static_cast<int>(set - std::begin(kSets))});
      }
    }
  }

  // Case ids where at least as many are known as cases as are known as slides.
  bool holds_cases() const {
    int64_t cases = 0, slides = 0;
    for (const Entry& entry : entries_) {
      cases += cases_.contains(entry.id) ? 1 : 0;
      slides += slides_.contains(without_slide_ending(entry.id)) ? 1 : 0;
    }
    return cases >= slides;
  }

  std::string place(const Entry& entry) const { return place_in(csv_, entry.row, entry.column); }

  // The slides that an id stands for. Each id once; each case in one set.
  std::vector<int64_t> find(const Entry& entry, bool by_case, int64_t& unknown) {
    const std::string id = by_case ? entry.id : without_slide_ending(entry.id);
    const auto& known = by_case ? cases_ : slides_;
    const auto [first, is_new] = ids_.emplace(id, &entry);
    PM_CHECK(is_new || first->second->set != entry.set, IoError, "{}: {} is there twice, first in row {}", place(entry),
             id, first->second->row + 1);
    PM_CHECK(is_new, IoError, "{}: {} {} is in two sets: also in row {}, column {}", place(entry),
             by_case ? "case" : "slide", id, first->second->row + 1, kSets[first->second->set]);
    const auto found = known.find(id);
    if (found == known.end()) {
      if (skipped_.contains(id)) return {};
      PM_CHECK(skip_unknown_, IoError, "{}: there is no {} {} in {} (--skip-missing passes over such ids)",
               place(entry), by_case ? "case" : "slide", id, cohort_.table.file);
      ++unknown;
      return {};
    }
    if (by_case) return cohort_.cases[static_cast<size_t>(found->second)].slides;
    const int64_t owner = cohort_.case_of[static_cast<size_t>(found->second)];
    const auto [other, alone] = owners_.emplace(owner, &entry);
    PM_CHECK(alone || other->second->set == entry.set, IoError,
             "{}: case {} is in two sets: its slide {} is in {}, its slide {} in row {} is in {}", place(entry),
             cohort_.cases[static_cast<size_t>(owner)].id, id, kSets[entry.set], other->second->id,
             other->second->row + 1, kSets[other->second->set]);
    return {found->second};
  }

  CsvTable csv_;
  const Cohort& cohort_;
  bool skip_unknown_;
  std::map<std::string, int64_t> cases_, slides_;
  std::set<std::string> skipped_;
  std::vector<Entry> entries_;
  std::map<std::string, const Entry*> ids_;
  std::map<int64_t, const Entry*> owners_;  // case -> its first slide in the file
};

// The k of splits_k.csv; nothing for other names (CLAM writes splits_0_bool.csv beside it).
std::optional<int64_t> split_number(const fs::path& path) {
  const std::string name = path.filename().string();
  constexpr std::string_view kBegin = "splits_", kEnd = ".csv";
  if (!name.starts_with(kBegin) || !name.ends_with(kEnd) || name.size() <= kBegin.size() + kEnd.size())
    return std::nullopt;
  const char* first = name.data() + kBegin.size();
  const char* last = name.data() + name.size() - kEnd.size();
  int64_t number = 0;
  const auto [end, failure] = std::from_chars(first, last, number);
  return failure == std::errc() && end == last && number >= 0 ? std::optional(number) : std::nullopt;
}

std::vector<int64_t> slides_of(const Cohort& cohort, const std::vector<int64_t>& fold_of, int64_t fold, bool inside) {
  std::vector<int64_t> members;
  for (size_t i = 0; i < cohort.case_of.size(); ++i) {
    if ((fold_of[static_cast<size_t>(cohort.case_of[i])] == fold) == inside) members.push_back(static_cast<int64_t>(i));
  }
  return members;
}

}  // namespace

std::vector<Fold> read_splits(const std::string& path, const Cohort& cohort, bool skip_unknown) {
  PM_CHECK(fs::exists(path), IoError, "{}: there is no such file or folder of splits", path);
  std::map<int64_t, std::string> files;
  if (fs::is_directory(path)) {
    for (const fs::directory_entry& entry : fs::directory_iterator(path)) {
      if (const auto number = split_number(entry.path())) files[*number] = entry.path().string();
    }
    PM_CHECK(!files.empty(), IoError, "{}: the folder holds no splits_0.csv, splits_1.csv, ..", path);
  } else {
    files[split_number(path).value_or(0)] = path;
  }
  std::vector<Fold> folds;
  for (const auto& [number, file] : files)
    folds.push_back(SplitFile(file, cohort, skip_unknown).read(std::to_string(number)));
  return folds;
}

std::vector<Fold> make_folds(const Cohort& cohort, int64_t count, uint64_t seed) {
  const auto cases = static_cast<int64_t>(cohort.cases.size());
  PM_CHECK(count >= 2, IoError, "cross validation needs at least 2 folds, got {}", count);
  PM_CHECK(cases >= count, IoError, "{}: {} cases cannot be divided into {} folds", cohort.table.file, cases, count);
  struct Place {
    int64_t stratum;
    uint64_t draw;
    int64_t index;
  };
  std::vector<int64_t> by_id(static_cast<size_t>(cases));
  for (int64_t i = 0; i < cases; ++i) by_id[static_cast<size_t>(i)] = i;
  std::sort(by_id.begin(), by_id.end(), [&](int64_t a, int64_t b) {
    return cohort.cases[static_cast<size_t>(a)].id < cohort.cases[static_cast<size_t>(b)].id;
  });
  std::vector<Place> places;
  for (int64_t i = 0; i < cases; ++i) {
    const int64_t index = by_id[static_cast<size_t>(i)];
    const CohortCase& one = cohort.cases[static_cast<size_t>(index)];
    const PhiloxBlock random = philox_at(seed, kFoldStream, static_cast<uint64_t>(i));
    const int64_t stratum = cohort.outcome == Outcome::classes ? one.label.value_or(0) : one.censored ? 1 : 0;
    places.push_back({stratum, uint64_t{random.word[0]} << 32 | random.word[1], index});
  }
  std::stable_sort(places.begin(), places.end(), [](const Place& a, const Place& b) {
    return a.stratum != b.stratum ? a.stratum < b.stratum : a.draw < b.draw;
  });
  std::vector<int64_t> fold_of(static_cast<size_t>(cases));
  for (size_t i = 0; i < places.size(); ++i)
    fold_of[static_cast<size_t>(places[i].index)] = static_cast<int64_t>(i) % count;
  std::vector<Fold> folds;
  for (int64_t k = 0; k < count; ++k) {
    folds.push_back(
        {std::to_string(k), slides_of(cohort, fold_of, k, false), slides_of(cohort, fold_of, k, true), {}, 0});
  }
  return folds;
}

std::vector<Fold> column_folds(const Cohort& cohort) {
  const SlideTable& table = cohort.table;
  PM_CHECK(!table.fold_column.empty(), IoError, "{}: has no column 'fold'; --fold-column names another", table.file);
  const auto place = [&](const SlideRow& row) {
    return fmt::format("{}: row {}, column {}", table.file, row.row, table.fold_column);
  };
  std::map<std::string, int64_t> numbers;
  for (const SlideRow& row : table.rows) {
    PM_CHECK(!is_missing(row.fold), IoError, "{}: a fold is needed, got '{}'", place(row), row.fold);
    numbers.emplace(row.fold, 0);
  }
  PM_CHECK(numbers.size() >= 2, IoError, "{}: column {}: at least two folds are needed, all rows are in '{}'",
           table.file, table.fold_column, table.rows[0].fold);
  PM_CHECK(numbers.size() <= 100, IoError, "{}: column {}: {} folds; at most 100 make sense", table.file,
           table.fold_column, numbers.size());
  std::vector<std::string> names;
  for (const auto& [name, unused] : numbers) names.push_back(name);
  std::sort(names.begin(), names.end(), numbers_first);
  for (size_t k = 0; k < names.size(); ++k) numbers[names[k]] = static_cast<int64_t>(k);
  std::vector<int64_t> fold_of(cohort.cases.size());
  for (size_t i = 0; i < cohort.cases.size(); ++i) {
    const CohortCase& one = cohort.cases[i];
    const SlideRow& first = table.rows[static_cast<size_t>(one.slides[0])];
    for (const int64_t slide : one.slides) {
      const SlideRow& row = table.rows[static_cast<size_t>(slide)];
      PM_CHECK(row.fold == first.fold, IoError, "{}: case {} is in two folds: {} here, {} in row {}", place(row),
               one.id, row.fold, first.fold, first.row);
    }
    fold_of[i] = numbers[first.fold];
  }
  std::vector<Fold> folds;
  for (size_t k = 0; k < names.size(); ++k) {
    const auto fold = static_cast<int64_t>(k);
    folds.push_back({names[k], slides_of(cohort, fold_of, fold, false), slides_of(cohort, fold_of, fold, true), {}, 0});
  }
  return folds;
}

}  // namespace pm::io
