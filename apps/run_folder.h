// The folder of a run: its lock, its config.json, and whether a run may begin or go on there.
#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "apps/common.h"
#include "io/data/file_ops.h"

namespace pm::app {

// What config.json says of a run besides its settings: program, version, command and arguments, seed, device.
nlohmann::ordered_json about_run(const std::string& command, const std::vector<std::string>& arguments,
                                 const RunOptions& run, Context& ctx);

class RunFolder {
 public:
  // Makes the folder, locks it against a second process and clears half-written files away.
  // `about`: what config.json says besides `training`, the settings that a resumed run must share.
  // Throws UsageError when something is saved there already and `resume` is not asked for, when a setting differs from the run that is to
  // be resumed, or when another process is at work there; IoError, StorageError.
  RunFolder(std::string path, const nlohmann::ordered_json& about, const nlohmann::ordered_json& training, bool resume,
            io::FileOps& files);
  ~RunFolder();
  RunFolder(const RunFolder&) = delete;
  RunFolder& operator=(const RunFolder&) = delete;

  const std::string& path() const { return path_; }
  // A folder in it, made where it is missing.
  std::string sub_folder(const std::string& name) const;

 private:
  void lock();
  void check_same(const nlohmann::ordered_json& about, const nlohmann::ordered_json& training) const;

  std::string path_;
  int lock_ = -1;
};

}  // namespace pm::app
