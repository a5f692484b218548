// Pieces of a page: style sheet, figures over folds, the verdict. Inside io/report only.
#pragma once
#include <optional>
#include <string>
#include <string_view>

#include "engine/metrics/summary.h"
#include "io/report/run_report.h"

namespace pm::io::page {

extern const std::string_view kStyle;

// Over the folds that are done and have a value.
metrics::Summary summarize(const RunReport& report, size_t metric);
// The fold's value, none where it is missing or not a number.
std::optional<double> value_of(const ReportFold& fold, size_t metric);
// "0.648 ± 0.031", "0.648" of one fold, "–" of none.
std::string mean_and_deviation(const metrics::Summary& summary);
std::string interval_text(const ReportMetric& metric);  // "0.590 to 0.691"; "" without
// What came out, in sentences a reader need not decode.
std::string verdict(const RunReport& report);
std::string capitalized(std::string_view text);
std::string base64(std::string_view bytes);

}  // namespace pm::io::page
