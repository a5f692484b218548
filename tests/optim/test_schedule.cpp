#include <cmath>

#include "engine/core/error.h"
#include "engine/optim/schedule.h"
#include "tests/support/test.h"

namespace pm::test {

TEST_CASE("cosine_schedule warms up, falls and stays at its minimum", "[cpu]") {
  CHECK(cosine_schedule(0, 100, 10, 1.0, 0.1) == 0.1);
  CHECK(cosine_schedule(9, 100, 10, 1.0, 0.1) == 1.0);
  CHECK(cosine_schedule(10, 100, 10, 1.0, 0.1) == 1.0);
  CHECK(std::abs(cosine_schedule(55, 100, 10, 1.0, 0.1) - 0.55) < 1e-12);
  CHECK(cosine_schedule(100, 100, 10, 1.0, 0.1) == 0.1);
  CHECK(cosine_schedule(1'000'000, 100, 10, 1.0, 0.1) == 0.1);
  for (int64_t step = 11; step < 101; ++step) {
    CHECK(cosine_schedule(step, 100, 10, 1.0, 0.1) < cosine_schedule(step - 1, 100, 10, 1.0, 0.1));
  }
}

TEST_CASE("cosine_schedule without warm-up or without a fall", "[cpu]") {
  CHECK(cosine_schedule(0, 10, 0, 2.0, 0.0) == 2.0);
  CHECK(cosine_schedule(4, 5, 5, 2.0, 0.0) == 2.0);
  CHECK(cosine_schedule(5, 5, 5, 2.0, 0.5) == 0.5);
  CHECK(cosine_schedule(0, 0, 0, 2.0, 0.5) == 0.5);
}

TEST_CASE("cosine_schedule rejects impossible lengths", "[cpu]") {
  CHECK_THROWS_AS(cosine_schedule(-1, 10, 0, 1.0, 0.0), ConfigError);
  CHECK_THROWS_AS(cosine_schedule(0, 10, 11, 1.0, 0.0), ConfigError);
  CHECK_THROWS_AS(cosine_schedule(0, 10, -1, 1.0, 0.0), ConfigError);
}

}  // namespace pm::test
