#include "io/slide/tiff_messages.h"

#include <tiffio.h>

#include <mutex>

namespace pm::io {
namespace {

// As global as the handlers it guards.
struct Handlers {
  std::mutex mutex;
  int users = 0;
  TIFFErrorHandler error = nullptr, warning = nullptr;
};

Handlers& handlers() {
  static Handlers state;
  return state;
}

}  // namespace

TiffSilence::TiffSilence() {
  Handlers& state = handlers();
  const std::lock_guard lock(state.mutex);
  if (state.users++ > 0) return;
  state.error = TIFFSetErrorHandler(nullptr);
  state.warning = TIFFSetWarningHandler(nullptr);
}

TiffSilence::~TiffSilence() {
  Handlers& state = handlers();
  const std::lock_guard lock(state.mutex);
  if (--state.users > 0) return;
  TIFFSetErrorHandler(state.error);
  TIFFSetWarningHandler(state.warning);
}

}  // namespace pm::io
