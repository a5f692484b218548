#include "apps/run_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <vector>

#include "apps/common.h"
#include "engine/core/check.h"
#include "io/checkpoint/checkpoint_store.h"
#include "io/data/atomic_file.h"
#include "io/data/file.h"

namespace pm::app {
namespace fs = std::filesystem;
namespace {

using Json = nlohmann::ordered_json;

// What AtomicFile leaves behind when the process is killed.
void clear_half_written(const std::string& folder) {
  std::vector<fs::path> left_over;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    if (entry.is_regular_file() && entry.path().filename().string().find(".part-") != std::string::npos) {
      left_over.push_back(entry.path());
    }
  }
  std::error_code ignored;
  for (const fs::path& path : left_over) fs::remove(path, ignored);
}

// Whether something is there that a new run would spoil: a checkpoint, or the results of a fold.
bool holds_work(const std::string& folder) {
  const auto has_work = [](const fs::path& place) {
    return fs::exists(place / "summary.json") || !io::checkpoint_steps((place / "checkpoints").string()).empty();
  };
  if (has_work(folder)) return true;
  std::error_code failure;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, failure)) {
    if (entry.is_directory() && has_work(entry.path())) return true;
  }
  return false;
}

// "weight_decay" -> "--weight-decay"
std::string option_of(std::string key) {
  for (char& c : key) c = c == '_' ? '-' : c;
  return "--" + key;
}

}  // namespace

Json about_run(const std::string& command, const std::vector<std::string>& arguments, const RunOptions& run,
               Context& ctx) {
  return {{"program", "pixel-mamba"},
          {"version", PM_VERSION},
          {"command", command},
          {"arguments", arguments},
          {"seed", run.seed},
          {"device", ctx.device().str()},
          {"device_name", ctx.backend().description()}};
}

RunFolder::RunFolder(std::string path, const Json& about, const Json& training, bool resume, io::FileOps& files)
    : path_(std::move(path)) {
  const bool begun = holds_work(path_);
  PM_CHECK(resume || !begun, UsageError,
           "{}: holds a run already: --resume continues it; another --out, or removing the folder, starts anew", path_);
  io::make_folder(path_);
  lock();
  try {
    clear_half_written(path_);
    if (begun) {
      check_same(about, training);
    } else {
      if (resume) fmt::print(stderr, "{}: nothing is saved there yet, the run begins now\n", path_);
      Json json = about;
      json["training"] = training;
      io::write_file_atomically(path_ + "/config.json", json.dump(1) + "\n", files);
    }
  } catch (...) {
    ::close(lock_);
    throw;
  }
}

RunFolder::~RunFolder() { ::close(lock_); }

std::string RunFolder::sub_folder(const std::string& name) const {
  const std::string folder = path_ + "/" + name;
  io::make_folder(folder);
  clear_half_written(folder);
  return folder;
}

void RunFolder::lock() {
  const std::string file = path_ + "/.lock";
  lock_ = ::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  PM_CHECK(lock_ >= 0, IoError, "{}: cannot be written: {}", file, std::strerror(errno));
  if (::flock(lock_, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK)
    return;  // some network file systems have no locks
  ::close(lock_);
  throw UsageError(fmt::format("{}: another process is training there; wait for it, or choose another --out", path_));
}

void RunFolder::check_same(const Json& about, const Json& training) const {
  const std::string file = path_ + "/config.json";
  const Json stored = Json::parse(io::read_file(file), nullptr, /*allow_exceptions=*/false);
  PM_CHECK(stored.is_object() && stored.contains("training"), IoError, "{}: not the configuration of a fine-tuning run",
           file);
  Json now = training;
  for (const auto& [key, value] : stored["training"].items()) now.emplace(key, Json());  // set then, not now
  for (const auto& [key, value] : now.items()) {
    const Json before = stored["training"].value(key, Json());
    PM_CHECK(before == value, UsageError,
             "--resume: {} is {} here and {} in {}; a run continues with the options that it began with",
             option_of(key), value.dump(), before.dump(), file);
  }
  for (const char* key : {"version", "device_name"}) {
    const Json before = stored.value(key, Json()), present = about.value(key, Json());
    if (before == present) continue;
    fmt::print(stderr, "warning: {} was {} and is {} now: the run goes on, but not bit for bit\n", key, before.dump(),
               present.dump());
  }
}

}  // namespace pm::app
