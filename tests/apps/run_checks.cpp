#include "tests/apps/run_checks.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>

#include "tests/apps/run_program.h"

namespace pm::test {

namespace fs = std::filesystem;

namespace {

void flush() {
  std::fflush(stdout);
  std::fflush(stderr);
}

}  // namespace

Quiet::Quiet() : out_(::dup(STDOUT_FILENO)), err_(::dup(STDERR_FILENO)) {
  const int nowhere = ::open("/dev/null", O_WRONLY);
  flush();
  ::dup2(nowhere, STDOUT_FILENO);
  ::dup2(nowhere, STDERR_FILENO);
  ::close(nowhere);
}

Quiet::~Quiet() {
  flush();
  ::dup2(out_, STDOUT_FILENO);
  ::dup2(err_, STDERR_FILENO);
  ::close(out_);
  ::close(err_);
}

std::string metrics_of(const std::string& file) {
  std::string text;
  for (Json line : json_lines(read_text(file))) {
    line.erase("seconds");
    line.erase("peak_gb");
    text += line.dump() + "\n";
  }
  return text;
}

void check_same_run(const std::string& run, const std::string& reference) {
  int64_t files = 0;
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(reference)) {
    const std::string name = fs::relative(entry.path(), reference).string();
    if (!entry.is_regular_file() || name.ends_with("config.json") || name.ends_with("state.json") || name == ".lock" ||
        name == "report.html" ||                // these name the folder and the arguments
        contains(name, "events.out.tfevents"))  // each start has its own
      continue;
    CAPTURE(name);
    if (name.ends_with("metrics.jsonl")) {
      CHECK(metrics_of(run + "/" + name) == metrics_of(entry.path().string()));
    } else {
      CHECK(read_text(run + "/" + name) == read_text(entry.path().string()));
    }
    ++files;
  }
  CHECK(files >= 4);
}

void check_faults(const std::string& parent, FailingFiles::How how, int64_t stride,
                  const std::function<int(const std::string& folder, io::FileOps& files)>& run) {
  const std::string whole = parent + "/whole";
  FailingFiles counting;
  REQUIRE(run(whole, counting) == 0);
  const std::vector<std::string> calls = counting.calls();
  int64_t tried = 0;
  for (size_t at = 0; at < calls.size(); ++at) {
    // Of the many writes of tensors some; of everything else each, or some of them.
    if (at % static_cast<size_t>(calls[at] == "write" ? 41 * stride : stride) != 0) continue;
    CAPTURE(at, calls[at]);
    ++tried;
    const std::string folder = parent + "/run" + std::to_string(at);
    FailingFiles faulty(static_cast<int64_t>(at), how), sound;
    if (how == FailingFiles::How::kill) {
      CHECK_THROWS_AS(run(folder, faulty), Killed);
    } else {
      CHECK_THROWS_AS(run(folder, faulty), StorageError);
    }
    CHECK(run(folder, sound) == 0);
    check_same_run(folder, whole);
    fs::remove_all(folder);
  }
  CHECK(tried > 5);
}

}  // namespace pm::test
