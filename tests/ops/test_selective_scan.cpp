#include <algorithm>
#include <cmath>
#include <map>

#include "autograd/ops/selective_scan.h"
#include "engine/ops/elementwise/uniform.h"
#include "engine/ops/scan/selective_scan.h"
#include "tests/support/golden.h"
#include "tests/support/mamba.h"
#include "tests/support/test.h"

namespace pm::test {
namespace {

// (batch, rows, columns) to (batch, columns, rows), CPU f64.
Tensor transposed(const Tensor& tensor) {
  const int64_t batch = tensor.size(0), rows = tensor.size(1), columns = tensor.size(2);
  const std::vector<double> source = tensor.to_host<double>();
  std::vector<double> result(source.size());
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns; ++c) {
        result[static_cast<size_t>((b * columns + c) * rows + r)] =
            source[static_cast<size_t>((b * rows + r) * columns + c)];
      }
    }
  }
  return Tensor::from_host(cpu(), {batch, columns, rows}, result);
}

// The inputs in argument order: u, delta, A, B, C, D_skip, z, delta_bias.
using Inputs = std::vector<Tensor>;
constexpr const char* kGradNames[] = {"du", "ddelta", "dA", "dB", "dC", "dD_skip", "dz", "ddelta_bias"};

// CPU f64 values rounded to `dtype` (parameters to float32). With delta around 0.13 and A from -0.5 to -4.5 states live
// for 2 to 15 tokens.
Inputs make_inputs(int64_t batch, int64_t seq_len, int64_t d_inner, int64_t d_state, DType dtype) {
  const DType parameter = param_dtype(dtype);
  return {normal(1, {batch, seq_len, d_inner}, 1.0, dtype),      normal(2, {batch, seq_len, d_inner}, 1.0, dtype),
          uniform(3, {d_inner, d_state}, -4.5, -0.5, parameter), normal(4, {batch, seq_len, d_state}, 1.0, dtype),
          normal(5, {batch, seq_len, d_state}, 1.0, dtype),      normal(6, {d_inner}, 1.0, parameter),
          normal(7, {batch, seq_len, d_inner}, 1.0, dtype),      uniform(8, {d_inner}, -3.0, -1.0, parameter)};
}

Inputs on_device(Context& ctx, const Inputs& in, DType dtype) {
  Inputs moved;
  for (size_t i = 0; i < in.size(); ++i) {
    const bool parameter = i == 2 || i == 5 || i == 7;
    moved.push_back(on(ctx, in[i], parameter ? param_dtype(dtype) : dtype));
  }
  return moved;
}

Tensor scan(Context& ctx, const Inputs& in, bool reverse) {
  return ops::selective_scan(ctx, in[0], in[1], in[2], in[3], in[4], in[5], in[6], in[7], reverse);
}

// In argument order.
std::vector<Tensor> scan_grad(Context& ctx, const Tensor& dout, const Inputs& in, bool reverse) {
  ops::SelectiveScanGrads d =
      ops::selective_scan_grad(ctx, dout, in[0], in[1], in[2], in[3], in[4], in[5], in[6], in[7], reverse);
  return {d.du, d.ddelta, d.dA, d.dB, d.dC, d.dD_skip, d.dz, d.ddelta_bias};
}

// Forward and every gradient on `ctx` against CPU double.
void check_against_double(Context& ctx, int64_t batch, int64_t seq_len, int64_t d_inner, int64_t d_state, DType dtype,
                          bool reverse) {
  CAPTURE(to_string(dtype), batch, seq_len, d_inner, d_state, reverse);
  const Inputs in = make_inputs(batch, seq_len, d_inner, d_state, dtype);
  const Tensor dout = normal(9, {batch, seq_len, d_inner}, 1.0, dtype);
  const Inputs moved = on_device(ctx, in, dtype);
  check_close(scan(ctx, moved, reverse), scan(cpu(), in, reverse), tolerance(dtype), "out");
  const std::vector<Tensor> actual = scan_grad(ctx, on(ctx, dout, dtype), moved, reverse);
  const std::vector<Tensor> expected = scan_grad(cpu(), dout, in, reverse);
  for (size_t i = 0; i < actual.size(); ++i) {
    const bool parameter = i == 2 || i == 5 || i == 7;
    CHECK(actual[i].dtype() == moved[i].dtype());
    const double slack =
        parameter && d_inner < 4 ? 10.0 : 1.0;  // a few sums of terms of both signs may cancel: 2.3e-5 seen
    const double allowed = tolerance(parameter ? param_dtype(dtype) : dtype, batch * seq_len);
    check_close(actual[i], expected[i], slack * allowed, kGradNames[i]);
  }
}

void check_golden(Context& ctx, const std::string& file, DType dtype, double allowed) {
  CAPTURE(file);
  const std::map<std::string, Tensor> golden = load_golden(file);
  const bool reverse = file.find("reverse") != std::string::npos;
  const auto value = [&](const std::string& name) {
    const Tensor& tensor = golden.at(name);
    return tensor.shape().rank() == 3 ? transposed(tensor) : tensor;
  };
  Inputs in;
  for (const char* name : {"u", "delta", "A", "B", "C", "D_skip", "z", "delta_bias"}) in.push_back(value(name));
  in = on_device(ctx, in, dtype);
  check_close(scan(ctx, in, reverse), value("out"), allowed, "out");
  const std::vector<Tensor> grads = scan_grad(ctx, on(ctx, value("dout"), dtype), in, reverse);
  for (size_t i = 0; i < grads.size(); ++i) check_close(grads[i], value(kGradNames[i]), allowed, kGradNames[i]);
}

constexpr const char* kGoldenFiles[] = {
    "selective_scan_forward_2x3x1x4.safetensors",    "selective_scan_forward_2x6x37x16.safetensors",
    "selective_scan_forward_1x5x130x16.safetensors", "selective_scan_reverse_2x3x1x4.safetensors",
    "selective_scan_reverse_2x6x37x16.safetensors",  "selective_scan_reverse_1x5x130x16.safetensors"};

}  // namespace

// seq_len 63 to 65 stand around one chunk, 1000 makes several, 4099 many.
TEST_CASE("selective_scan on cuda equals cpu double at every length", "[cuda][slow]") {
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  const int64_t seq_len = GENERATE(0, 1, 7, 8, 9, 63, 64, 65, 1000, 4099);
  const int64_t batch = GENERATE(1, 2);
  const bool reverse = GENERATE(false, true);
  check_against_double(cuda(), batch, seq_len, 6, 16, dtype, reverse);
}

TEST_CASE("selective_scan on cuda equals cpu double at every width", "[cuda][slow]") {
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  const int64_t d_inner = GENERATE(1, 3, 6, 33, 96);
  const int64_t d_state = GENERATE(1, 4, 5, 16, 17, 64);
  const bool reverse = GENERATE(false, true);
  check_against_double(cuda(), 2, 137, d_inner, d_state, dtype, reverse);
}

TEST_CASE("selective_scan on cuda equals cpu double on long and on wide inputs", "[cuda][slow]") {
  check_against_double(cuda(), 1, 200'003, 6, 16, DType::f32, false);
  check_against_double(cuda(), 1, 50'021, 12, 16, DType::bf16, true);
  check_against_double(cuda(), 2, 1023, 384, 16, DType::f32, true);
  check_against_double(cuda(), 64, 65, 264, 16, DType::f32, false);  // so many channels that one chunk is enough
}

// One lane per channel: chunks share a warp up to 16 channels, and lanes idle at 12, 24 and 48.
TEST_CASE("selective_scan with one lane per channel on cuda equals cpu double", "[cuda]") {
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  const int64_t d_inner = GENERATE(11, 12, 16, 24, 48, 96);
  const int64_t seq_len = GENERATE(64, 130, 321, 700);
  check_against_double(cuda(), 2, seq_len, d_inner, seq_len % 2 == 0 ? 16 : 9, dtype, seq_len > 300);
}

TEST_CASE("selective_scan on cuda gives the same bits twice", "[cuda]") {
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  const Inputs in = on_device(cuda(), make_inputs(2, 1501, 96, 16, dtype), dtype);
  const Tensor dout = on(cuda(), normal(9, in[0].shape()), dtype);
  check_same_bits(scan(cuda(), in, false), scan(cuda(), in, false), "out");
  const std::vector<Tensor> first = scan_grad(cuda(), dout, in, false), second = scan_grad(cuda(), dout, in, false);
  for (size_t i = 0; i < first.size(); ++i) check_same_bits(first[i], second[i], kGradNames[i]);
}

TEST_CASE("selective_scan in cpu float equals cpu double", "[cpu]") {
  const int64_t seq_len = GENERATE(0, 1, 31, 32, 33, 1000);
  const int64_t d_state = GENERATE(1, 5, 16, 17, 64);
  const int64_t d_inner = GENERATE(1, 6, 33);
  const bool reverse = GENERATE(false, true);
  check_against_double(cpu(), 2, seq_len, d_inner, d_state, DType::f32, reverse);
}

TEST_CASE("selective_scan in cpu float equals cpu double on a long input", "[cpu]") {
  check_against_double(cpu(), 1, 20'011, 6, 16, DType::f32, false);
}

TEST_CASE("selective_scan gradient", "[cpu][grad]") {
  const bool reverse = GENERATE(false, true);
  const auto fn = [reverse](Context& c, const std::vector<Variable>& v) {
    return selective_scan(c, v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], reverse);
  };
  const std::vector<std::vector<int64_t>> sizes = {
      {1, 1, 1, 1}, {2, 5, 3, 4}, {1, 37, 2, 5}, {2, 1, 5, 16}, {1, 67, 17, 17}};
  for (const auto& size : sizes) {
    CAPTURE(size);
    check_gradient(fn, make_inputs(size[0], size[1], size[2], size[3], DType::f64));
  }
}

TEST_CASE("selective_scan equals the stored references", "[cpu][golden]") {
  for (const char* file : kGoldenFiles) {
    check_golden(cpu(), file, DType::f64, 1e-6);  // the files hold float32
    check_golden(cpu(), file, DType::f32, tolerance(DType::f32));
  }
}

TEST_CASE("selective_scan on cuda equals the stored references", "[cuda][golden]") {
  for (const char* file : kGoldenFiles) check_golden(cuda(), file, DType::f32, tolerance(DType::f32));
}

TEST_CASE("selective_scan in reverse is the scan of the flipped sequence, flipped", "[cpu]") {
  Inputs in = make_inputs(2, 71, 5, 16, DType::f64);
  const Tensor reverse = scan(cpu(), in, true);
  for (const size_t i : {0, 1, 3, 4, 6}) in[i] = flipped_tokens(in[i]);
  check_close(reverse, flipped_tokens(scan(cpu(), in, false)), 0.0);
}

TEST_CASE("selective_scan in reverse on cuda is the scan of the flipped sequence, flipped", "[cuda]") {
  Inputs in = make_inputs(2, 1071, 13, 16, DType::f32);
  const Tensor reverse = scan(cuda(), on_device(cuda(), in, DType::f32), true);
  for (const size_t i : {0, 1, 3, 4, 6}) in[i] = flipped_tokens(in[i]);
  check_close(reverse, flipped_tokens(widen(scan(cuda(), on_device(cuda(), in, DType::f32), false))), 0.0);
}

TEST_CASE("selective_scan at a token does not depend on what follows", "[cpu]") {
  const int64_t seq_len = 75, kept = 33, d_inner = 3;
  const Inputs in = make_inputs(1, seq_len, d_inner, 4, DType::f64);
  Inputs head = in;
  for (const size_t i : {0, 1, 3, 4, 6}) {
    const Tensor rows = in[i].reshape({seq_len, in[i].size(2)}).rows(0, kept);
    head[i] = rows.reshape({1, kept, in[i].size(2)});
  }
  const Tensor whole = scan(cpu(), in, false);
  check_close(scan(cpu(), head, false), whole.reshape({seq_len, d_inner}).rows(0, kept).reshape({1, kept, d_inner}),
              0.0);
}

TEST_CASE("selective_scan with B zero is the gated skip", "[cpu]") {
  Inputs in = make_inputs(1, 9, 2, 4, DType::f64);
  in[3] = Tensor::zeros(cpu(), in[3].shape(), DType::f64);
  in[5] = Tensor::from_host(cpu(), {2}, std::vector<double>{1.0, 1.0});
  const std::vector<double> u = in[0].to_host<double>(), z = in[6].to_host<double>();
  std::vector<double> expected(u.size());
  for (size_t i = 0; i < u.size(); ++i) expected[i] = u[i] * z[i] / (1.0 + std::exp(-z[i]));
  check_close(scan(cpu(), in, false), Tensor::from_host(cpu(), in[0].shape(), expected), 1e-14);
}

TEST_CASE("selective_scan leaves a large delta as it is and survives extreme gates", "[cpu]") {
  const Inputs in = {Tensor::from_host(cpu(), {1, 2, 1}, std::vector<float>{1.0f, 2.0f}),
                     Tensor::from_host(cpu(), {1, 2, 1}, std::vector<float>{30.0f, -200.0f}),
                     Tensor::from_host(cpu(), {1, 1}, std::vector<float>{-1e-3f}),
                     Tensor::from_host(cpu(), {1, 2, 1}, std::vector<float>{1.0f, 1.0f}),
                     Tensor::from_host(cpu(), {1, 2, 1}, std::vector<float>{1.0f, 1.0f}),
                     Tensor::from_host(cpu(), {1}, std::vector<float>{0.0f}),
                     Tensor::from_host(cpu(), {1, 2, 1}, std::vector<float>{200.0f, -200.0f}),
                     Tensor::from_host(cpu(), {1}, std::vector<float>{0.0f})};
  const Tensor out = scan(cpu(), in, false);
  CHECK(std::abs(out.to_host<float>()[0] - 6000.0f) < 0.1f);
  CHECK(std::abs(out.to_host<float>()[1]) < 1e-20f);
  for (const Tensor& grad : scan_grad(cpu(), in[3], in, false)) {
    for (const float value : grad.to_host<float>()) CHECK(std::isfinite(value));
  }
}

TEST_CASE("selective_scan of no tokens has zero parameter gradients", "[cpu]") {
  const Inputs in = make_inputs(2, 0, 3, 4, DType::f64);
  const std::vector<Tensor> grads = scan_grad(cpu(), in[0], in, false);
  check_close(grads[2], Tensor::zeros(cpu(), {3, 4}, DType::f64), 0.0);
  check_close(grads[5], Tensor::zeros(cpu(), {3}, DType::f64), 0.0);
}

TEST_CASE("selective_scan names what does not match", "[cpu]") {
  const Inputs good = make_inputs(2, 5, 3, 4, DType::f64);
  const std::vector<Shape> wrong = {{2, 3}, {2, 5, 4}, {4, 4}, {2, 5, 3}, {2, 4, 4}, {1}, {2, 5, 2}, {3, 1}};
  for (size_t i = 0; i < good.size(); ++i) {
    CAPTURE(i);
    Inputs bad = good;
    bad[i] = normal(1, wrong[i]);
    CHECK_THROWS_AS(scan(cpu(), bad, false), ShapeError);
    if (i == 0) continue;
    bad[i] = on(cpu(), good[i], DType::f32);
    CHECK_THROWS_AS(scan(cpu(), bad, false), DTypeError);
  }
  CHECK_THROWS_AS(scan_grad(cpu(), normal(1, {2, 5, 4}), good, false), ShapeError);
  CHECK_THROWS_AS(scan(cpu(), make_inputs(1, 2, 3, 65, DType::f64), false), ShapeError);
}

namespace {

// Tokens [begin, end) of a (1, seq_len, channels) tensor: the same memory.
Tensor tokens_of(const Tensor& tensor, int64_t begin, int64_t end) {
  const int64_t channels = tensor.size(2);
  return tensor.reshape({tensor.size(1), channels}).rows(begin, end).reshape({1, end - begin, channels});
}

}  // namespace

// The state forgets within a few hundred tokens here, so the last tokens of a very long sequence must come out as if the
// sequence began shortly before them, and so must their gradients.
TEST_CASE("selective_scan works past 2^31 elements on cuda", "[cuda][slow]") {
  const int64_t seq_len = (int64_t{1} << 31) + 12'345, window = 20'000, compared = 10'000;
  if (cuda().backend().total_bytes() < int64_t{120} << 30) {
    WARN("not run: needs a GPU with 120 GiB");
    return;
  }
  const bool reverse = GENERATE(false, true);
  const auto random = [&](double low, double high) {
    return ops::uniform(cuda(), {1, seq_len, 1}, DType::bf16, low, high);
  };
  const Tensor u = random(-1, 1), delta = random(-2, 1), B = random(-1, 1), C = random(-1, 1), z = random(-1, 1),
               dout = random(-1, 1);
  const Tensor A = Tensor::from_host<float>(cuda(), {1, 1}, {-0.5f}),
               D_skip = Tensor::from_host<float>(cuda(), {1}, {0.7f}),
               delta_bias = Tensor::from_host<float>(cuda(), {1}, {0.1f});
  const Tensor out = ops::selective_scan(cuda(), u, delta, A, B, C, D_skip, z, delta_bias, reverse);
  const auto grads = ops::selective_scan_grad(cuda(), dout, u, delta, A, B, C, D_skip, z, delta_bias, reverse);

  // Forwards the window ends with the sequence; in reverse the scan ends at its first token.
  const int64_t first = reverse ? 0 : seq_len - window, checked = reverse ? 0 : window - compared;
  const auto part = [&](const Tensor& t) { return widen(tokens_of(t, first, first + window)); };
  const Tensor a = widen(A), d = widen(D_skip), bias = widen(delta_bias);
  const Tensor expected =
      ops::selective_scan(cpu(), part(u), part(delta), a, part(B), part(C), d, part(z), bias, reverse);
  const auto expected_grads =
      ops::selective_scan_grad(cpu(), part(dout), part(u), part(delta), a, part(B), part(C), d, part(z), bias, reverse);
  const auto check = [&](const Tensor& actual, const Tensor& reference, const char* what) {
    check_close(tokens_of(part(actual), checked, checked + compared), tokens_of(reference, checked, checked + compared),
                tolerance(DType::bf16), what);
  };
  check(out, expected, "out");
  check(grads.du, expected_grads.du, "du");
  check(grads.ddelta, expected_grads.ddelta, "ddelta");
  check(grads.dB, expected_grads.dB, "dB");
  check(grads.dC, expected_grads.dC, "dC");
  check(grads.dz, expected_grads.dz, "dz");
}

}  // namespace pm::test
