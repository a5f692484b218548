// A made-up run for the tests of the report.
#pragma once
#include "io/report/run_report.h"

namespace pm::test {

// Four folds of a survival task on 240 cases, all parts filled. The numbers follow simple formulas and mean nothing.
io::RunReport sample_survival_run();
// Two folds of five, one of them failed; a staging task with four classes and long names.
io::RunReport sample_staging_run();
// Text that breaks a page or a plot which does not escape it.
inline const char* const kHostileText =
    "</title></style><script>alert('x')</script>\"&<img src=x onerror=alert(1)>\x01\xFF";

}  // namespace pm::test
