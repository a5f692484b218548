// Tables of slides and cases: CSV, or tab-separated where the file's name ends in .tsv.
//
// Columns, by any of the names that published tables use (first found wins; no other column is looked at), or as
// TableOptions names them:
//   path       path, file, slide_path; relative paths are relative to the table's folder
//   slide      slide_id, or the file's name; a slide ending (.svs) is taken off ids
//   case       case_id, patient_id, patient, bcr_patient_barcode, or the slide's id
//   class      label, or a stage column (stage, ajcc_stage, ajcc_pathologic_tumor_stage)
//   survival   survival_months + censorship (1 = censored; MCAT, SurvPath, ours), or OS.time in days + OS (1 = event;
//              TCGA-CDR); `endpoint` takes another outcome: survival_months_dss + censorship_dss, DSS.time + DSS, ..
//   mpp        mpp
//   fold       fold, or the one column whose name begins with fold_
//
// Classes are whole numbers from 0; stages, written I to IV with or without "Stage" and a letter ("Stage IIB" is II); or
// names (2 to 100 different ones, in alphabetical order). A column that mixes numbers and names is refused. Days become
// months of 30 days, as in the published tables.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace pm::io {

enum class Outcome {
  automatic,  // classes where there is a column label, else survival, else a stage column, else none
  none,
  classes,
  survival,
};

struct TableOptions {
  Outcome outcome = Outcome::automatic;
  std::string slides;  // folder, searched with its subfolders for slides of tables without a path column by slide id;
                       // in a table of cases alone every file whose name begins with the case id is a slide of it
  // Instead of the columns above. Of event and censorship one: they say what 1 means. The time is in months.
  std::string path_column, slide_column, case_column, label_column, fold_column;
  std::string time_column, event_column, censorship_column;
  std::string endpoint;  // "" or os: overall; dss, pfi, dfi, ..: the columns that end in it
  // Rows without outcome or slide are refused unless this is set: then they are left out and listed. Missing values of a
  // stage column never count as a mistake: published tables have them.
  bool skip_missing = false;
  // Rows whose slide is not there stay all the same, for a check that lists them; their path may be empty.
  bool keep_missing = false;
  bool find_slides = true;  // false: paths stay empty where the table has none, and no file has to be there
};

struct SlideRow {
  std::string case_id;
  std::string slide_id;
  std::string path;
  std::optional<double> mpp;
  std::optional<int64_t> label;           // class, 0..
  std::optional<double> survival_months;  // follow-up time
  bool censored = false;                  // no event was seen
  std::string fold;                       // empty where the table has none
  int64_t row = 0;                        // of the table, counted from 1 without the line of names; 0: no table
};

// A row that was left out.
struct SkippedRow {
  int64_t row = 0;
  std::string case_id, slide_id;
  std::string reason;  // "no ajcc_stage", "no file"
};

struct SlideTable {
  std::string file;
  std::vector<SlideRow> rows;
  std::vector<SkippedRow> skipped;
  std::vector<std::string> class_names;  // by class; "0", "1", .. where the table has numbers
  bool has_labels = false;               // every row has a label
  bool has_survival = false;             // every row has survival_months
  bool cases_from_slides = false;        // no column of cases: each slide is taken for one
  std::string label_column, time_column, event_column, case_column, fold_column;  // as found; empty: none
};

// Throws IoError naming file, row and column: a missing column, an empty table, a slide twice, a file that is not there, a
// value that is no number, a negative time, censorship other than 0 and 1, an empty id, slides of one case that disagree.
SlideTable read_slide_table(const std::string& path, const TableOptions& options = {});

// What `infer` was given: one slide or image, a folder of them (by name, not recursive), or a table.
// Throws IoError when there is no such file or nothing in it to read.
std::vector<SlideRow> list_slides(const std::string& input);

// The n_bins - 1 cut points between time bins: quantiles i / n_bins (linear interpolation) of uncensored times, one time
// per case. Where ties would leave a bin without event, the cuts move to the nearest times that give each bin one, as far
// as there are n_bins different times. Throws IoError when there is no event.
std::vector<double> survival_cuts(const std::vector<SlideRow>& rows, int64_t n_bins);
// Bin of a time: the number of cuts at or below it.
int64_t survival_bin(double months, const std::vector<double>& cuts);

}  // namespace pm::io
