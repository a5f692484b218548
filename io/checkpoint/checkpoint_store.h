// A folder of checkpoints, step-N each, of which every one is whole at any moment, whatever happens to the process or the
// disk: a checkpoint is written into a temporary folder, forced to disk, and takes its name in one step.
//
//   checkpoints/step-120/        whatever the caller wrote
//   checkpoints/last -> step-120, best -> step-80
//
// The step folders are the truth; the links are for people and replaced in one step as well. What a killed process left
// behind has a name that begins with a dot, is never read, and goes away when the store is opened.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "io/data/file_ops.h"

namespace pm::io {

class CheckpointStore {
 public:
  // Makes the folder and clears left-overs away. `ops` must outlive the store. Throws IoError, StorageError.
  explicit CheckpointStore(std::string folder, FileOps& ops = posix_file_ops());

  // `write` fills the folder that it is given, through AtomicFile. Then `last` points to the new checkpoint, and all but the
  // newest `keep` (at least 1) and the best one go away. A checkpoint of that step that is there already stays as it is.
  // Throws StorageError or IoError: the earlier checkpoints are unharmed then.
  void save(int64_t step, int64_t keep, const std::function<void(const std::string& folder)>& write);
  // Lets `best` point to a checkpoint that is there. Throws StorageError.
  void mark_best(int64_t step);
  // Removes one that turned out to be unreadable, so that its step can be saved again. Throws StorageError.
  void discard(int64_t step);

  std::vector<int64_t> steps() const;  // of the checkpoints, ascending
  std::string path(int64_t step) const;

 private:
  void set_link(const std::string& name, int64_t step);
  void prune(int64_t keep);
  int64_t linked(const std::string& name) const;  // -1 when there is no such link

  std::string folder_;
  FileOps& ops_;
};

// The checkpoints of a folder, ascending, without touching it; none when it is not there.
std::vector<int64_t> checkpoint_steps(const std::string& folder);

}  // namespace pm::io
