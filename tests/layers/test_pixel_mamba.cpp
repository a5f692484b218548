#include "autograd/ops/cross_entropy.h"
#include "autograd/ops/survival_nll.h"
#include "engine/core/check.h"
#include "engine/ops/elementwise/scaled_add.h"
#include "engine/ops/loss/cross_entropy.h"
#include "io/checkpoint/model_folder.h"
#include "io/checkpoint/safetensors.h"
#include "layers/model/pixel_mamba.h"
#include "tests/support/test.h"

namespace pm::test {
namespace {

using Tensors = std::map<std::string, Tensor>;

Tensors read_golden(const std::string& model, const std::string& file) {
  return io::read_safetensors(cpu(), golden_dir() + "/" + model + "/" + file + ".safetensors");
}

// Logits, embedding, loss and every gradient of a golden model, named as in expected.safetensors.
Tensors run_golden(Context& ctx, const std::string& name, DType activation, bool recomputed = true) {
  const PixelMamba model = io::read_model(ctx, golden_dir() + "/" + name, activation);
  const Tensors input = read_golden(name, "input");
  const Variable image(on(ctx, widen(input.at("image")), param_dtype(activation)), true);
  ForwardOptions options;
  options.recompute = recomputed;
  const ForwardResult result = model.forward(ctx, image, options);
  Variable loss;
  if (model.config().head == Head::survival) {
    loss = survival_nll(ctx, result.logits, input.at("bin").copy_to(ctx), input.at("censored").copy_to(ctx));
  } else {
    const auto labels = input.at("label").to_host<int64_t>();
    loss = cross_entropy(ctx, result.logits,
                         ops::one_hot(ctx, labels, model.config().num_classes, param_dtype(activation)), 0.0);
  }
  CHECK(result.regions_left == read_golden(name, "expected").at("regions_left").to_host<int64_t>()[0]);
  backward(ctx, loss);
  Tensors results = {{"logits", result.logits.value()},
                     {"embedding", result.embedding.value()},
                     {"loss", loss.value()},
                     {"grad.image", image.grad()}};
  for (const Parameter& parameter : model.parameters())
    results.emplace("grad." + parameter.name, parameter.value.grad());
  return results;
}

void check_golden(const Tensors& actual, const std::string& name, double output_tolerance, double gradient_tolerance) {
  const Tensors expected = read_golden(name, "expected");
  CHECK(actual.size() + 1 == expected.size());  // + regions_left
  for (const auto& [tensor, value] : actual) {
    INFO(tensor);
    const double allowed = tensor.starts_with("grad.") ? gradient_tolerance : output_tolerance;
    REQUIRE(expected.contains(tensor));
    CHECK_FALSE(!(relative_error(value, expected.at(tensor)) <= allowed));
  }
}

const char* const kGoldenModels[] = {"nano_single", "nano_fusion", "nano_survival"};

// A network of four layers on 8 x 8 regions, f64 where exactness matters.
ModelConfig tiny_config() {
  ModelConfig config;
  config.layers = {
      {3, Expansion::horizontal_cat}, {6, Expansion::vertical_avg}, {6, Expansion::vertical_cat}, {12, {}}};
  config.d_state = 4;
  config.region_size = 8;
  config.num_classes = 3;
  return config;
}

}  // namespace

TEST_CASE("golden models on the cpu", "[cpu][golden]") {
  const std::string name = kGoldenModels[GENERATE(0, 1, 2)];
  CAPTURE(name);
  check_golden(run_golden(cpu(), name, DType::f64), name, 1e-6, 1e-6);
  check_golden(run_golden(cpu(), name, DType::f32), name, 1e-4, 1e-3);
}

TEST_CASE("golden models on cuda", "[cuda][golden][cublas]") {
  const std::string name = kGoldenModels[GENERATE(0, 1, 2)];
  CAPTURE(name);
  check_golden(run_golden(cuda(), name, DType::f32), name, 1e-4, 1e-3);
  const Tensors bf16 = run_golden(cuda(), name, DType::bf16);
  check_close(bf16.at("logits"), read_golden(name, "expected").at("logits"), 5e-2, "bf16 logits");
}

TEST_CASE("two runs give the same bits on the cpu, recomputed or not", "[cpu]") {
  const Tensors first = run_golden(cpu(), "nano_fusion", DType::f32),
                second = run_golden(cpu(), "nano_fusion", DType::f32, false);
  for (const auto& [name, value] : first) check_same_bits(value, second.at(name), name);
  CHECK(cpu().live_nodes()->load() == 0);
}

TEST_CASE("two runs give the same bits on cuda, recomputed or not", "[cuda][cublas]") {
  const DType dtype = GENERATE(DType::f32, DType::bf16);
  const Tensors first = run_golden(cuda(), "nano_fusion", dtype),
                second = run_golden(cuda(), "nano_fusion", dtype, false);
  for (const auto& [name, value] : first) check_same_bits(value, second.at(name), name);
  CHECK(cuda().live_nodes()->load() == 0);
}

TEST_CASE("a batch gives what its images give alone", "[cpu]") {
  const PixelMamba model(cpu(), tiny_config(), DType::f64, 3);
  const Tensor both = normal(5, {2, 3, 16, 24});
  const Variable logits = model.forward(cpu(), Variable(both)).logits;
  for (int64_t i = 0; i < 2; ++i) {
    const Tensor alone = both.rows(i, i + 1);
    check_close(model.forward(cpu(), Variable(alone)).logits.value(), logits.value().rows(i, i + 1), 1e-12);
  }
}

TEST_CASE("u8 pixels and the same pixels normalised agree", "[cpu]") {
  const PixelMamba model(cpu(), tiny_config(), DType::f64, 3);
  const int64_t height = 11, width = 9;  // padded to 16 x 16 with white
  std::vector<uint8_t> pixels(static_cast<size_t>(height * width * 3));
  for (size_t i = 0; i < pixels.size(); ++i) pixels[i] = static_cast<uint8_t>((i * 37 + i / 7) % 256);
  const double mean[] = {0.485, 0.456, 0.406}, deviation[] = {0.229, 0.224, 0.225};
  std::vector<double> normalised(pixels.size());
  for (int64_t p = 0; p < height * width; ++p) {
    for (int64_t c = 0; c < 3; ++c) {
      normalised[static_cast<size_t>(c * height * width + p)] =
          (pixels[static_cast<size_t>(p * 3 + c)] / 255.0 - mean[c]) / deviation[c];
    }
  }
  const Tensor bytes = Tensor::from_host(cpu(), {1, height, width, 3}, pixels);
  const Tensor values = Tensor::from_host(cpu(), {1, 3, height, width}, normalised);
  check_close(model.forward(cpu(), Variable(bytes)).logits.value(),
              model.forward(cpu(), Variable(values)).logits.value(), 1e-12);
}

TEST_CASE("initialisation follows its rules and the seed", "[cpu]") {
  const PixelMamba model(cpu(), named_config("6m", 10), DType::f32, 0);
  int64_t count = 0;
  for (const Parameter& parameter : model.parameters()) {
    count += parameter.value.value().numel();
    const bool matrix =
        parameter.value.shape().rank() >= 2 && parameter.name != "cls_token" && !parameter.name.ends_with("_log");
    INFO(parameter.name);
    CHECK(parameter.decay == matrix);
    const std::vector<float> values = parameter.value.value().to_host<float>();
    const auto [low, high] = std::minmax_element(values.begin(), values.end());
    if (parameter.name.ends_with("dt_proj.bias")) {  // softplus of it lies in 1e-3..1e-1
      CHECK(std::log1p(std::exp(*low)) >= 0.99e-3);
      CHECK(std::log1p(std::exp(*high)) <= 1.01e-1);
    }
    if (parameter.name == "cls_token" || parameter.name == "head.weight") {
      CHECK(*low >= -0.04f);
      CHECK(*high <= 0.04f);
    }
    if (parameter.name == "layers.10.mixer.in_proj.weight") {
      const float bound = 1.0f / std::sqrt(192.0f);
      CHECK(*low >= -bound);
      CHECK(*high <= bound);
      CHECK(*high > 0.99f * bound);
    }
  }
  CHECK(count == parameter_count(model.config()));
  const PixelMamba same(cpu(), named_config("6m", 10), DType::f32, 0),
      other(cpu(), named_config("6m", 10), DType::f32, 1);
  const auto value_of = [](const PixelMamba& m) { return m.parameters()[2].value.value(); };
  check_same_bits(value_of(model), value_of(same));
  CHECK(relative_error(value_of(other), value_of(model)) > 0.1);
}

TEST_CASE("a seed gives the same weights on cuda", "[cuda]") {
  const PixelMamba host(cpu(), tiny_config(), DType::f32, 5), device(cuda(), tiny_config(), DType::f32, 5);
  for (size_t i = 0; i < host.parameters().size(); ++i) {
    check_same_bits(host.parameters()[i].value.value(), device.parameters()[i].value.value().copy_to(cpu()),
                    host.parameters()[i].name);
  }
}

// 2700 images of 50,177 tokens: B and C of the first layer hold more than 2^31 values each.
TEST_CASE("a batch past 2^31 values gives what its first image gives alone on cuda", "[cuda][slow][cublas]") {
  const int64_t batch = 2700, size = 224;
  if (cuda().backend().total_bytes() < int64_t{120} << 30) {
    WARN("not run: needs a GPU with 120 GiB");
    return;
  }
  const NoGrad no_grad(cuda());
  const PixelMamba model(cuda(), named_config("6m", 0), DType::f32, 0);
  std::vector<uint8_t> pixels(static_cast<size_t>(batch * size * size * 3));
  const size_t image_bytes = static_cast<size_t>(size * size * 3);
  for (size_t i = 0; i < pixels.size(); ++i) pixels[i] = static_cast<uint8_t>((i % image_bytes) * 131 / 7 % 256);
  const Tensor all = Tensor::from_host(cuda(), {batch, size, size, 3}, pixels);
  const Tensor together = model.forward(cuda(), Variable(all)).embedding.value();
  const Tensor alone = model.forward(cuda(), Variable(all.rows(0, 1).copy_to(cuda()))).embedding.value();
  for (const int64_t i : {int64_t{0}, batch / 2, batch - 1})
    check_close(together.rows(i, i + 1), alone, 1e-4, "image " + std::to_string(i));
}

TEST_CASE("a model folder survives a round trip and names what does not fit", "[cpu]") {
  const TempDir folder;
  const PixelMamba model(cpu(), tiny_config(), DType::f32, 9);
  io::write_model(folder.path(), model);
  const PixelMamba loaded = io::read_model(cpu(), folder.path(), DType::f32);
  for (size_t i = 0; i < model.parameters().size(); ++i) {
    check_same_bits(model.parameters()[i].value.value(), loaded.parameters()[i].value.value(),
                    model.parameters()[i].name);
  }
  Tensors weights = model.weights(cpu());
  weights.erase("norm_f.weight");
  weights["head.bias"] = Tensor::zeros(cpu(), {4}, DType::f32);
  weights["surplus"] = Tensor::zeros(cpu(), {1}, DType::f32);
  PixelMamba target(cpu(), tiny_config(), DType::f32, 1);
  try {
    target.load(cpu(), weights);
    FAIL("misfitting weights were taken");
  } catch (const ConfigError& error) {
    const std::string message = error.what();
    CHECK(message.find("missing: norm_f.weight") != std::string::npos);
    CHECK(message.find("head.bias: expected shape (3), got (4)") != std::string::npos);
    CHECK(message.find("surplus") != std::string::npos);
  }
  CHECK(target.load_matching(cpu(), weights).size() == model.parameters().size() - 2);
}

TEST_CASE("a table other than the published ones trains too", "[cpu][grad]") {
  ModelConfig config = tiny_config();
  config.shared_conv = true;
  config.divide_out = true;
  config.scan = ScanOrder::raster;
  config.shift_pad = ShiftPad::zero;
  config.head = Head::survival;
  config.num_classes = 4;
  const PixelMamba model(cpu(), config, DType::f64, 2);
  GradcheckOptions options;
  options.full_limit = 0;
  options.projections = 3;
  check_gradient([&](Context& ctx, const std::vector<Variable>& v) { return model.forward(ctx, v[0]).logits; },
                 {normal(4, {1, 3, 8, 16})}, options);
}

TEST_CASE("drop path leaves blocks out at random and scales the others", "[cpu]") {
  ModelConfig config = tiny_config();
  config.layers = {{3, {}}, {3, {}}};
  PixelMamba model(cpu(), config, DType::f64, 3);
  const Variable image(uniform(5, {1, 3, 8, 8}, -1.0, 1.0));
  const NoGrad no_grad(cpu());
  // The tokens after each layer.
  const auto run = [&](double drop_path) {
    std::vector<Tensor> tokens;
    ForwardOptions options;
    options.drop_path = drop_path;
    options.observe = [&](int64_t layer, const Tensor& t) {
      CHECK(layer == static_cast<int64_t>(tokens.size()));
      tokens.push_back(t.copy_to(cpu()));
    };
    model.forward(cpu(), image, options);
    return tokens;
  };
  const RngState before = cpu().rng().state();
  const std::vector<Tensor> whole = run(0.0);
  CHECK(cpu().rng().state() == before);  // prediction draws nothing
  const double rate = 0.25;              // of the second layer; the first is never left out
  const Tensor scaled = ops::scaled_add(cpu(), whole[1], 1.0 / (1.0 - rate), whole[0], 1.0 - 1.0 / (1.0 - rate));
  int dropped = 0;
  constexpr int kPasses = 200;
  for (int pass = 0; pass < kPasses; ++pass) {
    const std::vector<Tensor> tokens = run(rate);
    check_same_bits(tokens[0], whole[0]);
    const bool out = relative_error(tokens[1], whole[0]) == 0.0;
    dropped += out ? 1 : 0;
    if (!out) check_close(tokens[1], scaled, 1e-14);
  }
  CHECK(dropped > 25);  // 50 expected, deviation 6
  CHECK(dropped < 75);
  cpu().rng().set_state(before);
  const std::vector<Tensor> again = run(0.9);
  cpu().rng().set_state(before);
  check_same_bits(run(0.9)[1], again[1]);
  CHECK_THROWS_AS(run(1.0), ConfigError);
}

TEST_CASE("gradients flow through drop path, recomputed or not", "[cpu]") {
  PixelMamba model(cpu(), tiny_config(), DType::f64, 3);
  const Variable image(uniform(5, {1, 3, 16, 16}, -1.0, 1.0));
  const RngState before = cpu().rng().state();
  const auto gradients = [&](bool recomputed) {
    cpu().rng().set_state(before);
    ForwardOptions options;
    options.drop_path = 0.5;
    options.recompute = recomputed;
    backward(cpu(), cross_entropy(cpu(), model.forward(cpu(), image, options).logits,
                                  ops::one_hot(cpu(), {1}, 3, DType::f64), 0.0));
    std::vector<Tensor> grads;
    for (Parameter& parameter : model.parameters()) {
      grads.push_back(parameter.value.grad());
      parameter.value.clear_grad();
    }
    return grads;
  };
  const std::vector<Tensor> a = gradients(true), b = gradients(false);
  CHECK(a.front().defined());  // the CLS token, below every block
  for (size_t i = 0; i < a.size(); ++i) {
    CHECK(a[i].defined() == b[i].defined());
    if (a[i].defined()) check_close(a[i], b[i], 1e-12);  // sums of residual branches in another order
  }
}

}  // namespace pm::test
