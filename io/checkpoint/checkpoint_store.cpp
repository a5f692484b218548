#include "io/checkpoint/checkpoint_store.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <filesystem>

#include "engine/core/check.h"
#include "io/data/atomic_file.h"

namespace pm::io {
namespace fs = std::filesystem;
namespace {

constexpr const char* kPrefix = "step-";

// N of "step-N", -1 for any other name.
int64_t step_of(const std::string& name) {
  if (!name.starts_with(kPrefix)) return -1;
  const char* first = name.data() + std::string_view(kPrefix).size();
  const char* last = name.data() + name.size();
  int64_t step = -1;
  const auto [end, failure] = std::from_chars(first, last, step);
  return failure == std::errc() && end == last ? step : -1;
}

void remove_quietly(const fs::path& path) {
  std::error_code ignored;  // a left-over that cannot be removed does no harm
  fs::remove_all(path, ignored);
}

}  // namespace

std::vector<int64_t> checkpoint_steps(const std::string& folder) {
  std::vector<int64_t> steps;
  std::error_code failure;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, failure)) {
    const int64_t step = step_of(entry.path().filename().string());
    if (step >= 0 && entry.is_directory() && !entry.is_symlink()) steps.push_back(step);
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

CheckpointStore::CheckpointStore(std::string folder, FileOps& ops) : folder_(std::move(folder)), ops_(ops) {
  make_folder(folder_);
  std::vector<fs::path> left_over;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder_)) {
    if (entry.path().filename().string().starts_with(".")) left_over.push_back(entry.path());
  }
  for (const fs::path& path : left_over) remove_quietly(path);
}

std::vector<int64_t> CheckpointStore::steps() const { return checkpoint_steps(folder_); }

std::string CheckpointStore::path(int64_t step) const { return fmt::format("{}/{}{}", folder_, kPrefix, step); }

void CheckpointStore::save(int64_t step, int64_t keep, const std::function<void(const std::string& folder)>& write) {
  PM_CHECK(step >= 0 && keep >= 1, Error, "a checkpoint needs a step from 0 and keep from 1, got {} and {}", step,
           keep);
  if (!fs::exists(path(step))) {
    const std::string temporary = fmt::format("{}/.saving-{}{}", folder_, kPrefix, step);
    remove_quietly(temporary);
    try {
      if (ops_.make_folder(temporary) != 0) fail_file_call(temporary, "the folder cannot be made", errno);
      write(temporary);
      sync_folder(ops_, temporary);
      if (ops_.rename(temporary, path(step)) != 0) fail_file_call(path(step), "cannot be named", errno);
    } catch (const Error&) {
      remove_quietly(temporary);  // gives the space back
      throw;
    }
    sync_folder(ops_, folder_);
  }
  set_link("last", step);
  prune(keep);
}

void CheckpointStore::mark_best(int64_t step) {
  PM_CHECK(fs::exists(path(step)), Error, "{}: there is no such checkpoint", path(step));
  set_link("best", step);
}

void CheckpointStore::discard(int64_t step) {
  // Renamed first: a folder that is half removed must not look like a checkpoint.
  const std::string doomed = fmt::format("{}/.removing-{}{}", folder_, kPrefix, step);
  remove_quietly(doomed);
  if (ops_.rename(path(step), doomed) != 0) fail_file_call(path(step), "cannot be removed", errno);
  remove_quietly(doomed);
}

void CheckpointStore::set_link(const std::string& name, int64_t step) {
  if (linked(name) == step) return;
  const std::string temporary = fmt::format("{}/.{}", folder_, name), target = fmt::format("{}{}", kPrefix, step);
  remove_quietly(temporary);
  if (ops_.link(target, temporary) != 0) {
    if (errno == EPERM || errno == ENOTSUP || errno == ENOSYS)
      return;  // a file system without links: the folders suffice
    fail_file_call(folder_ + "/" + name, "cannot be linked", errno);
  }
  if (ops_.rename(temporary, folder_ + "/" + name) != 0)
    fail_file_call(folder_ + "/" + name, "cannot be replaced", errno);
  sync_folder(ops_, folder_);
}

int64_t CheckpointStore::linked(const std::string& name) const {
  std::error_code failure;
  const fs::path target = fs::read_symlink(folder_ + "/" + name, failure);
  return failure ? -1 : step_of(target.string());
}

void CheckpointStore::prune(int64_t keep) {
  std::vector<int64_t> all = steps();
  const int64_t best = linked("best");
  const auto surplus = static_cast<int64_t>(all.size()) - keep;
  for (int64_t i = 0; i < surplus; ++i) {
    if (all[static_cast<size_t>(i)] != best) discard(all[static_cast<size_t>(i)]);
  }
}

}  // namespace pm::io
