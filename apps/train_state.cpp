#include "apps/train_state.h"

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "engine/core/check.h"
#include "engine/ops/backends.h"
#include "io/checkpoint/model_folder.h"
#include "io/checkpoint/safetensors.h"
#include "io/data/atomic_file.h"
#include "io/data/file.h"

namespace pm::app {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kFormat = 1;

Json to_json(const TrainState& s, const AdamW& optimiser, const WeightAverage* average,
             const std::string& fingerprint) {
  return {{"format", kFormat},
          {"fingerprint", fingerprint},
          {"epoch", s.epoch},
          {"position", s.position},
          {"step", s.step},
          {"update", s.update},
          {"accumulated", s.accumulated},
          {"update_loss", s.update_loss},
          {"update_slides", s.update_slides},
          {"loss_sum", s.loss_sum},
          {"seconds", s.seconds},
          {"lr", s.lr},
          {"grad_norm", s.grad_norm},
          {"learnt", s.learnt},
          {"correct", s.correct},
          {"windows", s.windows},
          {"left_out", s.left_out},
          {"skipped", s.skipped},
          {"skipped_in_a_row", s.skipped_in_a_row},
          {"unreadable", s.unreadable},
          {"best_loss", s.best_loss ? Json(*s.best_loss) : Json()},
          {"metrics_bytes", s.metrics_bytes},
          {"rng", {s.rng.seed, s.rng.offset}},
          {"optimiser_steps", optimiser.steps()},
          {"average_updates", average != nullptr ? average->updates() : 0}};
}

Json read_json(const std::string& folder) {
  const std::string file = folder + "/state.json";
  Json json = Json::parse(io::read_file(file), nullptr, /*allow_exceptions=*/false);
  PM_CHECK(json.is_object() && json.contains("format"), IoError, "{}: not the state of a training", file);
  PM_CHECK(json["format"] == kFormat, IoError,
           "{}: written by another version of the program (format {}, this one reads {})", file, json["format"].dump(),
           kFormat);
  return json;
}

TrainState from_json(const Json& json, const std::string& folder) {
  try {
    TrainState s;
    json.at("epoch").get_to(s.epoch);
    json.at("position").get_to(s.position);
    json.at("step").get_to(s.step);
    json.at("update").get_to(s.update);
    json.at("accumulated").get_to(s.accumulated);
    s.update_loss = json.value("update_loss", 0.0);
    s.update_slides = json.value("update_slides", int64_t{0});
    json.at("loss_sum").get_to(s.loss_sum);
    json.at("seconds").get_to(s.seconds);
    json.at("lr").get_to(s.lr);
    json.at("grad_norm").get_to(s.grad_norm);
    json.at("learnt").get_to(s.learnt);
    json.at("correct").get_to(s.correct);
    json.at("windows").get_to(s.windows);
    json.at("left_out").get_to(s.left_out);
    json.at("skipped").get_to(s.skipped);
    json.at("skipped_in_a_row").get_to(s.skipped_in_a_row);
    json.at("unreadable").get_to(s.unreadable);
    if (!json.at("best_loss").is_null()) s.best_loss = json.at("best_loss").get<double>();
    json.at("metrics_bytes").get_to(s.metrics_bytes);
    s.rng = {json.at("rng").at(0).get<uint64_t>(), json.at("rng").at(1).get<uint64_t>()};
    return s;
  } catch (const nlohmann::json::exception& error) {
    throw IoError(fmt::format("{}/state.json: {}", folder, error.what()));
  }
}

// Looks a tensor up and checks that it fits `like`.
const Tensor& find(const std::map<std::string, Tensor>& tensors, const std::string& name, const Tensor& like) {
  const auto found = tensors.find(name);
  PM_CHECK(found != tensors.end(), ConfigError, "the checkpoint has no {}", name);
  PM_CHECK(found->second.shape() == like.shape() && found->second.dtype() == like.dtype(), ConfigError,
           "{} is {} {} in the checkpoint, {} {} here", name, to_string(found->second.dtype()),
           found->second.shape().str(), to_string(like.dtype()), like.shape().str());
  return found->second;
}

}  // namespace

void Fingerprint::add(const std::string& text) {
  for (const char c : text) hash_ = (hash_ ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  hash_ = (hash_ ^ 0xffu) * 0x100000001b3u;
}

std::string Fingerprint::text() const { return fmt::format("{:016x}", hash_); }

void write_checkpoint(Context& ctx, const std::string& folder, const Trainable& parts, const TrainState& state,
                      const std::string& fingerprint, io::FileOps& files) {
  std::map<std::string, Tensor> tensors;
  for (const OptimParameter& parameter : parts.optimiser.parameters()) {
    tensors.emplace("value." + parameter.name, parameter.value);
    tensors.emplace("exp_avg." + parameter.name, parameter.exp_avg);
    tensors.emplace("exp_avg_sq." + parameter.name, parameter.exp_avg_sq);
  }
  for (const Parameter& parameter : parts.model.parameters()) {
    if (parameter.value.grad().defined()) tensors.emplace("grad." + parameter.name, parameter.value.grad());
  }
  if (parts.average != nullptr) {
    for (const NamedTensor& average : parts.average->averages())
      tensors.emplace("average." + average.name, average.value);
  }
  io::write_safetensors(folder + "/training.safetensors", tensors, {}, files);
  io::write_file_atomically(folder + "/state.json",
                            to_json(state, parts.optimiser, parts.average, fingerprint).dump(1) + "\n", files);
  const WithAverage averaged(ctx, parts.average);
  io::write_model(folder, parts.model, files);
}

TrainState read_checkpoint(Context& ctx, const std::string& folder, Trainable& parts, const std::string& fingerprint) {
  const Json json = read_json(folder);
  TrainState state = from_json(json, folder);
  PM_CHECK(
      json.value("fingerprint", "") == fingerprint, ConfigError,
      "{}: was trained on other slides, images or labels: what can be read of them has changed since; undo that, or "
      "start anew in another folder",
      folder);
  Context host(make_backend(Device::cpu()));
  const auto tensors = io::read_safetensors(host, folder + "/training.safetensors");

  std::vector<std::pair<Tensor, const Tensor*>> copies;
  for (OptimParameter& parameter : parts.optimiser.parameters()) {
    copies.emplace_back(parameter.value, &find(tensors, "value." + parameter.name, parameter.value));
    copies.emplace_back(parameter.exp_avg, &find(tensors, "exp_avg." + parameter.name, parameter.exp_avg));
    copies.emplace_back(parameter.exp_avg_sq, &find(tensors, "exp_avg_sq." + parameter.name, parameter.exp_avg_sq));
  }
  if (parts.average != nullptr) {
    for (NamedTensor& average : parts.average->averages()) {
      copies.emplace_back(average.value, &find(tensors, "average." + average.name, average.value));
    }
  }
  for (auto& [destination, source] : copies) destination.copy_from_host(source->raw());
  for (Parameter& parameter : parts.model.parameters()) {
    const std::string name = "grad." + parameter.name;
    parameter.value.clear_grad();
    if (tensors.contains(name)) parameter.value.set_grad(find(tensors, name, parameter.value.value()).copy_to(ctx));
  }
  parts.optimiser.set_steps(json.value("optimiser_steps", int64_t{0}));
  if (parts.average != nullptr) parts.average->set_updates(json.value("average_updates", int64_t{0}));
  ctx.rng().set_state(state.rng);
  ctx.synchronize();
  return state;
}

std::optional<TrainState> restore_newest(Context& ctx, io::CheckpointStore& store, Trainable parts,
                                         const std::string& fingerprint) {
  std::vector<int64_t> steps = store.steps();
  for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
    try {
      return read_checkpoint(ctx, store.path(*step), parts, fingerprint);
    } catch (const IoError& error) {
      fmt::print(stderr, "warning: a checkpoint cannot be read, the one before it is taken: {}\n", error.what());
      store.discard(*step);
    }
  }
  return std::nullopt;
}

void mark_if_best(io::CheckpointStore& store, TrainState& state, double validation_loss) {
  if (!std::isfinite(validation_loss) || (state.best_loss && validation_loss >= *state.best_loss)) return;
  state.best_loss = validation_loss;
  if (std::filesystem::exists(store.path(state.step))) store.mark_best(state.step);
}

TrainState read_state(const std::string& folder) { return from_json(read_json(folder), folder); }

}  // namespace pm::app
