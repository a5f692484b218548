// PM_CHECK: a caller's mistake becomes an exception whose message names expected and actual values.
// Include it in .cpp files only: it pulls in fmt.
#pragma once
#include <fmt/format.h>

#include "engine/core/error.h"

#define PM_CHECK(condition, ErrorType, ...)                        \
  do {                                                             \
    if (!(condition)) throw ErrorType(::fmt::format(__VA_ARGS__)); \
  } while (false)
