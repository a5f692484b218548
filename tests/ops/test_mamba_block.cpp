#include <omp.h>

#include <algorithm>
#include <limits>

#include "autograd/ops/mamba_block.h"
#include "engine/core/counting_backend.h"
#include "engine/ops/backends.h"
#include "engine/ops/scan/mamba_block_plan.h"
#include "tests/support/mamba.h"

namespace pm::test {
namespace {

GradFn block(bool divide_out = false) {
  return [divide_out](Context& ctx, const std::vector<Variable>& v) {
    return mamba_block(ctx, v[0], block_parameters(v), {1e-5, divide_out});
  };
}

ops::MambaDirectionWeights direction_weights(const std::vector<Tensor>& v, size_t first) {
  return {v[first], v[first + 1], v[first + 2], v[first + 3], v[first + 4], v[first + 5], v[first + 6]};
}
ops::MambaBlockWeights weights_of(const std::vector<Tensor>& v) {
  return {v[1], v[2], v[3], {direction_weights(v, 4), direction_weights(v, 11)}};
}

std::vector<Tensor> on_device(Context& ctx, const std::vector<Tensor>& values, DType dtype) {
  std::vector<Tensor> moved;
  for (const Tensor& value : values) moved.push_back(on(ctx, value, moved.empty() ? dtype : param_dtype(dtype)));
  return moved;
}

// The output and every gradient on `ctx` against CPU double.
void check_against_double(Context& ctx, const BlockShape& shape, DType dtype, bool divide_out = false) {
  CAPTURE(to_string(dtype), shape.str(), divide_out);
  const GradFn fn = block(divide_out);
  check_block(run_block_with_gradients(ctx, fn, shape, dtype), run_block_in_double(fn, shape, dtype), dtype);
}

void check_two_runs(Context& ctx, const BlockShape& shape, DType dtype) {
  CAPTURE(to_string(dtype), shape.str());
  const std::vector<Tensor> first = run_block_with_gradients(ctx, block(), shape, dtype);
  const std::vector<Tensor> second = run_block_with_gradients(ctx, block(), shape, dtype);
  check_same_bits(first[0], second[0], "out");
  for (size_t i = 1; i < first.size(); ++i) check_same_bits(first[i], second[i], block_value_name(i - 1));
}

MambaBlockArgs sizes_of(const BlockShape& shape, DType dtype, int64_t scratch_bytes) {
  MambaBlockArgs args{};
  args.batch = shape.batch;
  args.seq_len = shape.seq_len;
  args.channels = shape.channels;
  args.d_inner = shape.d_inner;
  args.d_state = shape.d_state;
  args.d_conv = shape.d_conv;
  args.dt_rank = shape.dt_rank;
  args.dtype = dtype;
  args.scratch_bytes = scratch_bytes;
  return args;
}

// What a call holds at its peak beside what was there before.
template <typename Fn>
int64_t peak_of(Context& ctx, Fn&& call) {
  const int64_t before = ctx.backend().memory().current_bytes;
  ctx.backend().reset_peak();
  call();
  return ctx.backend().memory().peak_bytes - before;
}

// Peaks of the operator and of its gradient with values of no matter, outputs left out.
struct Scratch {
  int64_t forward, gradient;
};
Scratch scratch_of(Context& ctx, const BlockShape& shape, DType dtype) {
  const int64_t c = shape.channels, inner = shape.d_inner, rank = shape.dt_rank, n = shape.d_state;
  const auto zeros = [&](const Shape& sizes) { return Tensor::zeros(ctx, sizes, param_dtype(dtype)); };
  ops::MambaBlockWeights weights{zeros({c}), zeros({2 * inner, c}), zeros({c, inner}), {}};
  for (ops::MambaDirectionWeights& w : weights.direction) {
    w = {zeros({inner, 1, shape.d_conv}),
         zeros({inner}),
         zeros({rank + 2 * n, inner}),
         zeros({inner, rank}),
         zeros({inner}),
         zeros({inner, n}),
         zeros({inner})};
  }
  const Tensor tokens = Tensor::zeros(ctx, {shape.batch, shape.seq_len, c}, dtype);
  const auto bytes = static_cast<int64_t>(tokens.bytes());
  const NoGrad inference(ctx);
  const int64_t forward = peak_of(ctx, [&] { ops::mamba_block(ctx, tokens, weights, {}); }) - bytes;
  ops::MambaBlockGrads grads;
  const int64_t before = ctx.backend().memory().current_bytes;
  const int64_t gradient = peak_of(ctx, [&] { grads = ops::mamba_block_grad(ctx, tokens, tokens, weights, {}); });
  return {forward, gradient - (ctx.backend().memory().current_bytes - before)};
}
// What is predicted for it.
Scratch counted_scratch(Device device, const BlockShape& shape, DType dtype) {
  Context ctx(std::make_shared<CountingBackend>(device));
  return scratch_of(ctx, shape, dtype);
}

// The flipped sequence through a block whose directions have changed places gives the flipped output.
void check_flip(Context& ctx, const BlockShape& shape, DType dtype, double allowed) {
  CAPTURE(to_string(dtype), shape.str());
  const std::vector<Tensor> values = block_values(shape, dtype);
  std::vector<Tensor> mirrored = values;
  mirrored[0] = flipped_tokens(values[0]);
  std::swap_ranges(mirrored.begin() + 4, mirrored.begin() + 11, mirrored.begin() + 11);
  const auto run = [&](const std::vector<Tensor>& v) {
    const std::vector<Tensor> moved = on_device(ctx, v, dtype);
    return ops::mamba_block(ctx, moved[0], weights_of(moved), {});
  };
  const auto run_grad = [&](const Tensor& dout, const std::vector<Tensor>& v) {
    const std::vector<Tensor> moved = on_device(ctx, v, dtype);
    return ops::mamba_block_grad(ctx, on(ctx, dout, dtype), moved[0], weights_of(moved), {});
  };
  check_close(flipped_tokens(widen(run(mirrored))), widen(run(values)), allowed, "out");
  const Tensor dout = normal(99, values[0].shape(), 1.0, dtype);
  const ops::MambaBlockGrads plain = run_grad(dout, values), flipped = run_grad(flipped_tokens(dout), mirrored);
  check_close(flipped_tokens(widen(flipped.dtokens)), widen(plain.dtokens), allowed, "dtokens");
  check_close(flipped.dweights.in_proj, widen(plain.dweights.in_proj), allowed, "in_proj");
  for (const int p : {0, 1}) {
    const ops::MambaDirectionWeights &actual = flipped.dweights.direction[1 - p], &wanted = plain.dweights.direction[p];
    check_close(actual.conv_weight, widen(wanted.conv_weight), allowed, "conv_weight");
    check_close(actual.x_proj, widen(wanted.x_proj), allowed, "x_proj");
    check_close(actual.A_log, widen(wanted.A_log), allowed, "A_log");
  }
}

// Other tokens, even infinite ones, in one batch entry leave the bits of the others as they are.
void check_batch_entries_are_apart(Context& ctx, const BlockShape& shape, DType dtype) {
  CAPTURE(to_string(dtype), shape.str());
  std::vector<Tensor> values = block_values(shape, dtype);
  const Tensor dout = on(ctx, normal(99, values[0].shape(), 1.0, dtype), dtype);
  const auto run = [&] {
    const std::vector<Tensor> moved = on_device(ctx, values, dtype);
    return std::vector<Tensor>{ops::mamba_block(ctx, moved[0], weights_of(moved), {}),
                               ops::mamba_block_grad(ctx, dout, moved[0], weights_of(moved), {}).dtokens};
  };
  const std::vector<Tensor> before = run();
  std::vector<double> tokens = values[0].to_host<double>();
  const auto entry = static_cast<std::ptrdiff_t>(shape.seq_len * shape.channels);
  std::fill(tokens.begin() + entry, tokens.begin() + 2 * entry, std::numeric_limits<double>::infinity());
  values[0] = Tensor::from_host(cpu(), values[0].shape(), tokens);
  const std::vector<Tensor> after = run();
  for (size_t i = 0; i < before.size(); ++i) {
    for (int64_t b = 0; b < shape.batch; ++b) {
      if (b == 1) continue;
      check_same_bits(after[i].rows(b, b + 1), before[i].rows(b, b + 1), i == 0 ? "out" : "dtokens");
    }
  }
}

}  // namespace

// ---------------------------------------------------------------- CPU
TEST_CASE("mamba_block gradient", "[cpu][grad]") {
  const BlockShape shape =
      GENERATE(BlockShape{1, 1, 1, 1, 1, 1, 1}, BlockShape{1, 1, 3, 6, 16, 4, 1}, BlockShape{2, 5, 3, 6, 4, 4, 1},
               BlockShape{1, 11, 6, 7, 3, 2, 2}, BlockShape{3, 2, 5, 3, 5, 8, 4}, BlockShape{1, 9, 17, 34, 2, 4, 2},
               BlockShape{1, 37, 2, 4, 16, 3, 1});
  const bool divide_out = GENERATE(false, true);
  CAPTURE(shape.str(), divide_out);
  GradcheckOptions options;
  options.full_limit = 60;
  options.projections = 3;
  check_gradient(block(divide_out), block_values(shape, DType::f64), options);
}

TEST_CASE("mamba_block in cpu float equals cpu double", "[cpu]") {
  const int64_t channels = GENERATE(3, 12, 96);
  const int64_t seq_len = GENERATE(1, 3, 65, 300);
  check_against_double(cpu(), published_shape(2, seq_len, channels), DType::f32, seq_len == 65);
}

// Part of a group of eight channels, states that are not a multiple of eight, more than one segment of the gradient.
TEST_CASE("mamba_block in cpu float equals cpu double at odd sizes", "[cpu]") {
  const BlockShape shape = GENERATE(BlockShape{2, 37, 5, 7, 3, 2, 4}, BlockShape{1, 70, 24, 48, 64, 8, 2},
                                    BlockShape{3, 17, 9, 17, 33, 1, 1}, BlockShape{1, 50, 70, 200, 9, 4, 5},
                                    published_shape(1, 2049, 3), published_shape(2, 4111, 6));
  check_against_double(cpu(), shape, DType::f32);
}

TEST_CASE("mamba_block in cpu float gives the same bits for any number of threads", "[cpu]") {
  const BlockShape shape =
      GENERATE(published_shape(1, 2500, 3), published_shape(2, 700, 12), published_shape(1, 50, 384));
  CAPTURE(shape.str());
  const int before = omp_get_max_threads();
  omp_set_num_threads(1);
  const std::vector<Tensor> alone = run_block_with_gradients(cpu(), block(), shape, DType::f32);
  for (const int threads : {2, 3, 7}) {
    CAPTURE(threads);
    omp_set_num_threads(threads);
    const std::vector<Tensor> together = run_block_with_gradients(cpu(), block(), shape, DType::f32);
    for (size_t i = 0; i < alone.size(); ++i) {
      check_same_bits(together[i], alone[i], i == 0 ? "out" : block_value_name(i - 1));
    }
  }
  omp_set_num_threads(before);
}

TEST_CASE("mamba_block of the flipped sequence with the directions swapped is flipped", "[cpu]") {
  check_flip(cpu(), BlockShape{2, 71, 5, 10, 16, 4, 1}, DType::f64, tolerance(DType::f64));
}

TEST_CASE("mamba_block keeps batch entries apart", "[cpu]") {
  check_batch_entries_are_apart(cpu(), published_shape(3, 67, 6), GENERATE(DType::f32, DType::f64));
}

TEST_CASE("mamba_block on the cpu gives the same bits twice", "[cpu]") {
  check_two_runs(cpu(), published_shape(2, 201, 24), GENERATE(DType::f32, DType::f64));
}

TEST_CASE("mamba_block with out_proj zero passes the tokens on", "[cpu]") {
  std::vector<Tensor> values = block_values(published_shape(2, 9, 3), DType::f64);
  values[3] = Tensor::zeros(cpu(), values[3].shape(), DType::f64);
  check_same_bits(ops::mamba_block(cpu(), values[0], weights_of(values), {}), values[0], "out");
}

TEST_CASE("mamba_block halves the sum of both directions with divide_out", "[cpu]") {
  const std::vector<Tensor> values = block_values(published_shape(1, 7, 3), DType::f64);
  const auto change = [&](bool divide_out) {
    std::vector<double> out =
        ops::mamba_block(cpu(), values[0], weights_of(values), {1e-5, divide_out}).to_host<double>();
    const std::vector<double> tokens = values[0].to_host<double>();
    for (size_t i = 0; i < out.size(); ++i) out[i] = (out[i] - tokens[i]) * (divide_out ? 2.0 : 1.0);
    return Tensor::from_host(cpu(), values[0].shape(), out);
  };
  check_close(change(true), change(false), 1e-13);
}

// One convolution for both directions: the parameter occurs twice and gets the sum of both gradients.
TEST_CASE("mamba_block adds the gradients of a parameter that both directions share", "[cpu][grad]") {
  std::vector<Tensor> values = block_values(published_shape(2, 13, 3), DType::f64);
  values[11] = values[4];
  values[12] = values[5];
  const Tensor dout = normal(99, values[0].shape());
  std::vector<Variable> apart, shared;
  for (const Tensor& value : values) apart.emplace_back(value, true);
  for (const Tensor& value : values) shared.emplace_back(value, true);
  shared[11] = shared[4];
  shared[12] = shared[5];
  backward(cpu(), block()(cpu(), apart), dout);
  backward(cpu(), block()(cpu(), shared), dout);
  for (const size_t i : {4, 5}) {
    const std::vector<double> first = apart[i].grad().to_host<double>(), second = apart[i + 7].grad().to_host<double>();
    std::vector<double> sum(first.size());
    std::transform(first.begin(), first.end(), second.begin(), sum.begin(), std::plus<>());
    check_close(shared[i].grad(), Tensor::from_host(cpu(), apart[i].shape(), sum), 1e-14, block_value_name(i));
  }
}

TEST_CASE("mamba_block keeps nothing but its inputs for the backward pass", "[cpu]") {
  std::vector<Variable> leaves;
  for (const Tensor& value : block_values(published_shape(1, 33, 3), DType::f32)) {
    leaves.emplace_back(on(cpu(), value, DType::f32), true);
  }
  const int64_t before = cpu().backend().memory().allocations;
  Variable out = block()(cpu(), leaves);
  CHECK(cpu().backend().memory().allocations == before + 1);  // the output
  CHECK(cpu().live_nodes()->load() == 1);
  backward(cpu(), out, on(cpu(), normal(99, out.shape()), DType::f32));
  out = Variable();
  CHECK(cpu().live_nodes()->load() == 0);
}

TEST_CASE("mamba_block on the cpu takes the memory that it says", "[cpu]") {
  Context ctx(make_backend(Device::cpu()));
  const BlockShape shape = GENERATE(published_shape(1, 4099, 3), published_shape(3, 70, 24), published_shape(1, 1, 48),
                                    BlockShape{2, 2500, 5, 11, 9, 3, 2});
  CAPTURE(shape.str());
  const Scratch measured = scratch_of(ctx, shape, DType::f32),
                counted = counted_scratch(Device::cpu(), shape, DType::f32);
  CHECK(measured.forward == counted.forward);
  CHECK(measured.gradient == counted.gradient);
}

TEST_CASE("the longest segment of a mamba_block is what its plan says", "[cpu]") {
  const int64_t batch = GENERATE(1, 2, 129), channels = GENERATE(3, 48, 384), scratch = GENERATE(0, 1 << 23);
  const int64_t seq_len = GENERATE(1, 5, 65, 4096, 4097, 4099, 8191, 8192, 8193, 8195, 12'300, 100'003);
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const MambaBlockArgs args = sizes_of(published_shape(batch, seq_len, channels), dtype, scratch);
    CAPTURE(batch, seq_len, channels, scratch, to_string(dtype));
    for (const cuda::block::Plan& plan : {cuda::block::forward_plan(args), cuda::block::gradient_plan(args)}) {
      const std::vector<cuda::block::Segment> segments = cuda::block::cut(args, plan);
      CAPTURE(plan.chunk_len, plan.tokens, plan.sequences);
      REQUIRE(static_cast<int64_t>(segments.size()) == plan.segments);
      int64_t rows = 0, all = 0;
      for (const cuda::block::Segment& segment : segments) {
        rows = std::max(rows, segment.all_rows());
        all += segment.rows();
        REQUIRE(segment.sequences <= plan.sequences);
        REQUIRE(segment.tokens <= plan.tokens);
        REQUIRE(segment.first_token % plan.chunk_len == 0);
      }
      REQUIRE(all == batch * seq_len);
      REQUIRE(rows == plan.rows);
    }
  }
}

TEST_CASE("mamba_block of no tokens has zero parameter gradients", "[cpu]") {
  const BlockShape shape = GENERATE(BlockShape{0, 5, 3, 6, 16, 4, 1}, BlockShape{2, 0, 3, 6, 16, 4, 1});
  CAPTURE(shape.str());
  const std::vector<Tensor> results = run_block_with_gradients(cpu(), block(), shape, DType::f64);
  CHECK(results[0].numel() == 0);
  for (size_t i = 2; i < results.size(); ++i) {
    check_close(results[i], Tensor::zeros(cpu(), results[i].shape(), DType::f64), 0.0, block_value_name(i - 1));
  }
}

TEST_CASE("mamba_block names what does not match", "[cpu]") {
  const BlockShape shape{2, 5, 3, 6, 4, 4, 2};
  const std::vector<Tensor> good = block_values(shape, DType::f64);
  const auto run = [](const std::vector<Tensor>& v) { return ops::mamba_block(cpu(), v[0], weights_of(v), {}); };
  CHECK_NOTHROW(run(good));
  for (size_t i = 0; i < good.size(); ++i) {
    CAPTURE(block_value_name(i));
    std::vector<Tensor> bad = good;
    bad[i] = normal(1, Shape{2});  // of the wrong length, and for most of the wrong rank
    CHECK_THROWS_AS(run(bad), ShapeError);
    CHECK_THROWS_AS(ops::mamba_block_covers(cpu(), bad[0], weights_of(bad)), ShapeError);
    bad[i] = Tensor();
    CHECK_THROWS_AS(run(bad), Error);
    if (i == 0) continue;
    bad[i] = on(cpu(), good[i], DType::f32);
    CHECK_THROWS_AS(run(bad), DTypeError);
  }
  std::vector<Tensor> bad = good;
  bad[16] = normal(1, {6, 5});
  CHECK_THROWS_WITH(run(bad), ContainsSubstring("mamba_block reverse: A_log must have shape"));
  CHECK_THROWS_AS(ops::mamba_block_grad(cpu(), normal(1, {2, 4, 3}), good[0], weights_of(good), {}), ShapeError);
  CHECK_THROWS_AS(ops::mamba_block(cpu(), good[0], weights_of(good), {.spare_bytes = -1}), ShapeError);
  CHECK_THROWS_AS(run(block_values({1, 2, 3, 6, 65, 4, 1}, DType::f64)), ShapeError);
  CHECK_THROWS_AS(run(block_values({1, 2, 3, 6, 4, 9, 1}, DType::f64)), ShapeError);
}

TEST_CASE("mamba_block covers every shape on the cpu", "[cpu]") {
  const std::vector<Tensor> values = block_values({1, 2, 5, 7, 64, 8, 3}, DType::f64);
  CHECK(ops::mamba_block_covers(cpu(), values[0], weights_of(values)));
}

// ---------------------------------------------------------------- CUDA
// Every kernel of the block and none of cuBLASLt's, few tokens: what the sanitizers run. Narrow layers; layers of as few
// channels that only the kernels of wide ones take (dt_rank above 4, other d_inner); one chunk and several.
TEST_CASE("mamba_block on cuda equals cpu double in small shapes", "[cuda][small]") {
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  const BlockShape shape =
      GENERATE(BlockShape{2, 9, 3, 6, 16, 4, 1}, BlockShape{2, 70, 3, 6, 16, 4, 1}, BlockShape{2, 70, 6, 12, 16, 4, 1},
               BlockShape{1, 137, 12, 24, 16, 4, 1}, BlockShape{2, 70, 12, 24, 16, 4, 5},
               BlockShape{1, 137, 11, 22, 16, 4, 1}, BlockShape{2, 3, 5, 10, 16, 4, 1});
  check_against_double(cuda(), shape, dtype);
}

TEST_CASE("mamba_block on cuda equals cpu double at every width", "[cuda][cublas]") {
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  const int64_t channels = GENERATE(3, 6, 12, 24, 48, 96, 192, 384);
  const int64_t seq_len = GENERATE(1, 65);
  check_against_double(cuda(), published_shape(seq_len == 1 ? 3 : 1, seq_len, channels), dtype, channels % 4 == 0);
}

// Lengths around powers of two, where chunks and tiles end; 777 makes many of them.
TEST_CASE("mamba_block on cuda equals cpu double at every length", "[cuda][cublas]") {
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  const int64_t channels = GENERATE(3, 12, 48);
  const int64_t seq_len =
      GENERATE(0, 1, 2, 3, 4, 15, 16, 17, 31, 32, 33, 63, 64, 65, 99, 127, 128, 129, 130, 197, 257, 777);
  check_against_double(cuda(), published_shape(seq_len % 2 == 0 ? 1 : 3, seq_len, channels), dtype);
}

TEST_CASE("mamba_block on cuda equals cpu double at every width and length", "[cuda][slow][cublas]") {
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  const int64_t channels = GENERATE(3, 6, 12, 24, 48, 96, 192, 384);
  const int64_t seq_len = GENERATE(3, 63, 64, 130, 777);
  const int64_t batch = GENERATE(1, 3);
  check_against_double(cuda(), published_shape(batch, seq_len, channels), dtype, seq_len == 130);
}

TEST_CASE("mamba_block on cuda equals cpu double on long inputs and many batch entries", "[cuda][slow][cublas]") {
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  const BlockShape shape =
      GENERATE(published_shape(1, 50'433, 3), published_shape(2, 10'011, 6), published_shape(1, 12'609, 12),
               published_shape(1, 3'137, 96), published_shape(65, 65, 24), published_shape(300, 3, 3));
  check_against_double(cuda(), shape, dtype);
}

// Narrow layers are prepared in tiles of 248 or 120 tokens; odd lengths start every other sequence beside 16 bytes.
TEST_CASE("mamba_block on cuda equals cpu double around a tile of a narrow layer", "[cuda][cublas]") {
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  const int64_t channels = GENERATE(3, 6, 12, 24);
  const int64_t tile = channels == 24 ? 120 : 248;
  const int64_t beside = GENERATE(-1, 0, 1, 3);
  check_against_double(cuda(), published_shape(2, tile + beside, channels), dtype);
}

// The way back through dt_proj and x_proj takes 64 rows at a time, 32, 16 or 8 in the wider of these layers.
TEST_CASE("mamba_block on cuda equals cpu double around the rows of a block of a narrow layer", "[cuda][cublas]") {
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  const int64_t channels = GENERATE(3, 6, 12, 24);
  const int64_t rows = 192 / channels, beside = GENERATE(-1, 0, 1), dt_rank = GENERATE(1, 2, 3, 4);
  check_against_double(cuda(), BlockShape{1, rows + beside, channels, 2 * channels, 16, 4, dt_rank}, dtype);
}

// Shapes beside the published ones: either the kernels take them, or the operator says so and the block is composed.
TEST_CASE("mamba_block on cuda computes or refuses other shapes", "[cuda][cublas]") {
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  const BlockShape shape =
      GENERATE(BlockShape{2, 70, 1, 1, 1, 1, 1}, BlockShape{2, 70, 3, 6, 8, 4, 1}, BlockShape{2, 70, 3, 6, 64, 4, 1},
               BlockShape{2, 70, 3, 6, 16, 2, 1}, BlockShape{2, 70, 3, 6, 16, 8, 1}, BlockShape{2, 70, 3, 6, 16, 4, 2},
               BlockShape{2, 70, 3, 3, 16, 4, 1}, BlockShape{2, 70, 6, 24, 16, 4, 1},
               BlockShape{2, 70, 5, 10, 16, 4, 1}, BlockShape{2, 70, 17, 34, 16, 4, 2},
               BlockShape{2, 70, 100, 200, 16, 4, 7}, BlockShape{1, 40, 400, 800, 16, 4, 25});
  CAPTURE(to_string(dtype), shape.str());
  const std::vector<Tensor> values = on_device(cuda(), block_values(shape, dtype), dtype);
  if (ops::mamba_block_covers(cuda(), values[0], weights_of(values))) {
    check_against_double(cuda(), shape, dtype);
  } else {
    CHECK_THROWS_AS(ops::mamba_block(cuda(), values[0], weights_of(values), {}), ShapeError);
    CHECK_THROWS_AS(ops::mamba_block_grad(cuda(), values[0], values[0], weights_of(values), {}), ShapeError);
  }
}

TEST_CASE("mamba_block on cuda covers the published widths", "[cuda][cublas]") {
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  const int64_t channels = GENERATE(3, 6, 12, 24, 48, 96, 192, 384);
  CAPTURE(to_string(dtype), channels);
  const std::vector<Tensor> values = on_device(cuda(), block_values(published_shape(1, 2, channels), dtype), dtype);
  CHECK(ops::mamba_block_covers(cuda(), values[0], weights_of(values)));
}

// But for the sums of weight gradients that the plan leaves out.
TEST_CASE("mamba_block on cuda takes the memory that it says", "[cuda][cublas]") {
  constexpr int64_t kTransient = 10'000'000;
  Context ctx(make_backend(Device::cuda()));
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  const BlockShape shape =
      GENERATE(published_shape(1, 1'000'003, 3), published_shape(1, 500'000, 24), published_shape(1, 300'000, 96),
               published_shape(130, 785, 96), published_shape(4, 65, 384), published_shape(1, 5, 12));
  CAPTURE(to_string(dtype), shape.str());
  const Scratch measured = scratch_of(ctx, shape, dtype), counted = counted_scratch(Device::cuda(), shape, dtype);
  CHECK(counted.forward <= measured.forward);
  CHECK(measured.forward <= counted.forward + kTransient);
  CHECK(counted.gradient <= measured.gradient);
  CHECK(measured.gradient <= counted.gradient + kTransient);
}

TEST_CASE("mamba_block on cuda of the flipped sequence with the directions swapped is flipped", "[cuda][cublas]") {
  const int64_t channels = GENERATE(3, 24, 96);
  check_flip(cuda(), published_shape(2, 331, channels), DType::f32, 5e-5);
}

TEST_CASE("mamba_block on cuda keeps batch entries apart", "[cuda][cublas]") {
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  check_batch_entries_are_apart(cuda(), published_shape(3, 203, GENERATE(3, 24, 96)), dtype);
}

TEST_CASE("mamba_block on cuda gives the same bits twice", "[cuda][cublas]") {
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  const int64_t channels = GENERATE(3, 6, 12, 24, 48, 96, 192, 384);
  check_two_runs(cuda(), published_shape(2, 501, channels), dtype);
}

}  // namespace pm::test
