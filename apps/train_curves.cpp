#include "apps/train_curves.h"

#include <nlohmann/json.hpp>

#include "engine/core/check.h"

namespace pm::app {

using Json = nlohmann::ordered_json;

template <typename Work>
void TrainCurves::guarded(Work&& work) {
  try {
    work();
  } catch (const IoError& error) {
    note_(fmt::format("warning: no more curves for TensorBoard from here on: {}", error.what()));
    file_.reset();
  }
}

TrainCurves::TrainCurves(const std::string& folder, const TrainState& state, int64_t slides,
                         std::function<void(const std::string&)> note)
    : note_(std::move(note)) {
  const bool epoch_is_due = state.step > 0 && state.position == slides;
  guarded([&] { file_ = std::make_unique<io::EventFile>(folder, epoch_is_due ? state.step - 1 : state.step); });
  if (epoch_is_due) add_update(state);
}

void TrainCurves::add(const std::string& tag, int64_t step, double value) {
  if (file_) guarded([&] { file_->add_scalar(tag, step, value); });
}

void TrainCurves::add_update(const TrainState& state) {
  add("train/lr", state.step, state.lr);
  if (state.update_slides == 0) return;  // all were skipped
  add("train/update_loss", state.step, state.update_loss / static_cast<double>(state.update_slides));
  add("train/grad_norm", state.step, state.grad_norm);
}

void TrainCurves::add_epoch(const TrainState& state, const Json& line) {
  for (const char* name : {"loss", "accuracy", "seconds", "skipped"}) {
    if (line.contains(name) && line[name].is_number())
      add(std::string("train/") + name, state.step, line[name].get<double>());
  }
  const Json validation = line.value("validation", Json::object());
  for (const auto& [name, value] : validation.items()) {
    if (value.is_number() && name != "cases" && name != "slides" && name != "events" && name != "images")
      add("validation/" + name, state.step, value.get<double>());
  }
  flush();
}

void TrainCurves::flush() {
  if (file_) guarded([&] { file_->flush(); });
}

}  // namespace pm::app
