#include <cmath>
#include <map>

#include "autograd/ops/survival_nll.h"
#include "engine/ops/loss/survival_nll.h"
#include "tests/support/golden.h"
#include "tests/support/test.h"

namespace pm::test {
namespace {

Tensor scalar(double value) { return Tensor::from_host(cpu(), {1}, std::vector<double>{value}); }

Tensor integers(const std::vector<int64_t>& values) {
  return Tensor::from_host(cpu(), {static_cast<int64_t>(values.size())}, values);
}

struct Problem {
  // Large logits, so that some arguments fall below the floor.
  Problem(int64_t batch, int64_t n_bins) : logits(normal(1, {batch, n_bins}, 8.0, DType::f32)) {
    std::vector<int64_t> bins, flags;
    for (int64_t i = 0; i < batch; ++i) {
      bins.push_back((i * 7 + i / 3) % n_bins);
      flags.push_back(i % 3 == 1 ? 1 : 0);
    }
    bin = integers(bins);
    censored = integers(flags);
  }
  Tensor logits, bin, censored;
};

void check_device(Context& ctx, const Problem& p) {
  CAPTURE(p.logits.shape().str());
  const Tensor logits = on(ctx, p.logits, DType::f32), bin = p.bin.copy_to(ctx), censored = p.censored.copy_to(ctx);
  check_close(ops::survival_nll(ctx, logits, bin, censored), ops::survival_nll(cpu(), p.logits, p.bin, p.censored),
              tolerance(DType::f32), "loss");
  check_close(ops::survival_nll_grad(ctx, on(ctx, scalar(-0.5), DType::f32), logits, bin, censored),
              ops::survival_nll_grad(cpu(), scalar(-0.5), p.logits, p.bin, p.censored), tolerance(DType::f32),
              "dlogits");
}

void check_golden(Context& ctx, DType dtype) {
  auto golden = load_golden("survival_nll_6x4.safetensors");
  const Variable logits(on(ctx, golden.at("logits"), dtype), true);
  const Variable loss = survival_nll(ctx, logits, golden.at("bin").copy_to(ctx), golden.at("censored").copy_to(ctx));
  backward(ctx, loss);
  // The file holds float32.
  check_close(loss.value(), golden.at("loss"), tolerance(DType::f32), "loss");
  check_close(logits.grad(), golden.at("dlogits"), tolerance(DType::f32), "dlogits");
}

}  // namespace

TEST_CASE("survival_nll on cuda equals cpu double", "[cuda]") {
  const int64_t batch = GENERATE(1, 2, 255, 256, 257, 3'001), n_bins = GENERATE(1, 4, 9);
  check_device(cuda(), Problem(batch, n_bins));
}

TEST_CASE("survival_nll on cuda gives the same bits twice", "[cuda]") {
  const Problem p(3'001, 4);
  const Tensor logits = on(cuda(), p.logits, DType::f32), bin = p.bin.copy_to(cuda()),
               censored = p.censored.copy_to(cuda());
  check_same_bits(ops::survival_nll(cuda(), logits, bin, censored), ops::survival_nll(cuda(), logits, bin, censored));
}

TEST_CASE("survival_nll on cuda is NaN for an entry out of range", "[cuda]") {
  const int64_t bin = GENERATE(as<int64_t>{}, -1, 4, int64_t{1} << 40);
  const Tensor logits = on(cuda(), normal(1, {2, 4}), DType::f32), good = integers({1, 1}).copy_to(cuda());
  const Tensor bins = integers({0, bin}).copy_to(cuda()), flags = integers({0, 2}).copy_to(cuda());
  CHECK(std::isnan(ops::survival_nll(cuda(), logits, bins, good).to_host<float>()[0]));
  CHECK(std::isnan(ops::survival_nll(cuda(), logits, good, flags).to_host<float>()[0]));
  const Tensor dloss = on(cuda(), scalar(1.0), DType::f32);
  const std::vector<float> dlogits = ops::survival_nll_grad(cuda(), dloss, logits, bins, good).to_host<float>();
  for (int j = 0; j < 4; ++j) {
    CHECK_FALSE(std::isnan(dlogits[j]));
    CHECK(std::isnan(dlogits[4 + j]));
  }
}

TEST_CASE("survival_nll equals its stored reference", "[cpu][golden]") {
  check_golden(cpu(), GENERATE(DType::f32, DType::f64));
}
TEST_CASE("survival_nll on cuda equals its stored reference", "[cuda][golden]") { check_golden(cuda(), DType::f32); }

TEST_CASE("survival_nll in cpu float equals cpu double", "[cpu]") {
  const int64_t batch = GENERATE(1, 2, 257), n_bins = GENERATE(1, 4, 9);
  check_device(cpu(), Problem(batch, n_bins));
}

TEST_CASE("survival_nll gradient", "[cpu][grad]") {
  const auto check = [](const Tensor& logits, const Tensor& bin, const Tensor& censored) {
    check_gradient([&](Context& c, const std::vector<Variable>& v) { return survival_nll(c, v[0], bin, censored); },
                   std::vector<Tensor>{logits});
  };
  check(normal(1, {6, 4}), integers({0, 3, 1, 2, 0, 3}), integers({0, 0, 1, 0, 1, 1}));
  check(normal(2, {1, 1}), integers({0}), integers({0}));
  check(normal(2, {1, 1}), integers({0}), integers({1}));
  // Arguments far below the floor: flat.
  const Problem large(40, 4);
  check(large.logits, large.bin, large.censored);
}

TEST_CASE("survival_nll is flat below its floor", "[cpu]") {
  const Tensor logits = Tensor::from_host(cpu(), {2, 2}, std::vector<double>{-40.0, 1.0, 40.0, 1.0});
  const Tensor bin = integers({0, 0}), censored = integers({0, 1});
  check_close(ops::survival_nll(cpu(), logits, bin, censored), scalar(-std::log(1e-7)), 1e-14);
  check_close(ops::survival_nll_grad(cpu(), scalar(1.0), logits, bin, censored),
              Tensor::zeros(cpu(), {2, 2}, DType::f64), 0.0);
}

TEST_CASE("survival_nll of dying in some bin or surviving all sums to certainty", "[cpu]") {
  const int64_t n_bins = 5;
  const Tensor logits = normal(3, {1, n_bins});
  double probability = 0.0;
  for (int64_t bin = 0; bin < n_bins; ++bin) {
    probability += std::exp(-ops::survival_nll(cpu(), logits, integers({bin}), integers({0})).to_host<double>()[0]);
  }
  probability +=
      std::exp(-ops::survival_nll(cpu(), logits, integers({n_bins - 1}), integers({1})).to_host<double>()[0]);
  CHECK(std::abs(probability - 1.0) < 1e-12);
}

TEST_CASE("survival_nll names what does not match", "[cpu]") {
  const Tensor logits = normal(1, {2, 4}), bin = integers({0, 3}), censored = integers({0, 1});
  CHECK_THROWS_AS(ops::survival_nll(cpu(), logits, integers({0}), censored), ShapeError);
  CHECK_THROWS_AS(ops::survival_nll(cpu(), normal(1, {8}), bin, censored), ShapeError);
  CHECK_THROWS_AS(ops::survival_nll(cpu(), normal(1, {0, 4}), integers({}), integers({})), ShapeError);
  CHECK_THROWS_AS(ops::survival_nll(cpu(), logits, normal(1, {2}), censored), DTypeError);
  CHECK_THROWS_WITH(ops::survival_nll(cpu(), logits, integers({0, 4}), censored),
                    "survival_nll: bin 4 of entry 1 is outside [0, 4)");
  CHECK_THROWS_WITH(ops::survival_nll_grad(cpu(), scalar(1.0), logits, integers({-1, 0}), censored),
                    "survival_nll: bin -1 of entry 0 is outside [0, 4)");
  CHECK_THROWS_WITH(ops::survival_nll(cpu(), logits, bin, integers({2, 0})),
                    "survival_nll: censored of entry 0 must be 0 or 1, it is 2");
}

}  // namespace pm::test
