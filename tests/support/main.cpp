// Test runner. Exit code 77 means: only tests were selected that cannot run here (no GPU, no PM_DATA, no Chromium); CTest
// reports those as skipped, by name.
#define CATCH_CONFIG_RUNNER
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <set>
#include <sstream>

#include "engine/ops/backends.h"
#include "tests/support/checked_backend.h"
#include "tests/support/test.h"

namespace pm::test {
namespace {

constexpr int kSkipped = 77;

// PM_TEST_NO_POISON=1 is for compute-sanitizer's initcheck: poisoned memory would count as initialised.
std::shared_ptr<CheckedBackend> checked(Device device) {
  return std::make_shared<CheckedBackend>(make_backend(device), std::getenv("PM_TEST_NO_POISON") == nullptr);
}

// Created on first use, kept for the whole run.
const std::shared_ptr<CheckedBackend>& cpu_backend() {
  static const auto backend = checked(Device::cpu());
  return backend;
}
const std::shared_ptr<CheckedBackend>& cuda_backend() {
  static const auto backend = checked(Device::cuda());
  return backend;
}

// What Catch2 2 and 3 name differently.
#if CATCH_VERSION_MAJOR >= 3
using ListenerBase = Catch::EventListenerBase;
std::string test_name(const Catch::TestCaseStats& stats) { return stats.testInfo->name; }
bool only_lists(const Catch::ConfigData& config) { return config.listTests || config.listTags || config.listReporters; }
#else
using ListenerBase = Catch::TestEventListenerBase;
std::string test_name(const Catch::TestCaseStats& stats) { return stats.testInfo.name; }
bool only_lists(const Catch::ConfigData& config) {
  return config.listTests || config.listTags || config.listReporters || config.listTestNamesOnly;
}
#endif

struct GuardListener : ListenerBase {
  using ListenerBase::ListenerBase;
  void testCaseEnded(const Catch::TestCaseStats& stats) override {
    const int64_t now = cpu_backend()->violations() + (has_cuda() ? cuda_backend()->violations() : 0);
    if (now != seen_) {
      std::cerr << "error: " << test_name(stats) << ": " << now - seen_ << " allocation(s) were written outside\n";
      ++failed;
    }
    seen_ = now;
  }
  static inline int failed = 0;

 private:
  int64_t seen_ = 0;
};
CATCH_REGISTER_LISTENER(GuardListener)

}  // namespace

Context& cpu() {
  static Context context(cpu_backend(), 1);
  return context;
}
Context& cuda() {
  static Context context(cuda_backend(), 1);
  return context;
}
bool has_cuda() {
  static const bool found = cuda_device_count() > 0;
  return found;
}
std::string data_dir() {
  const char* folder = std::getenv("PM_DATA");
  return folder != nullptr ? folder : "";
}
std::string browser() {
  const char* path = std::getenv("PATH");
  std::stringstream folders(path != nullptr ? path : "");
  for (std::string folder; std::getline(folders, folder, ':');) {
    for (const char* name : {"chromium", "chromium-browser", "google-chrome"}) {
      std::error_code failure;
      if (std::filesystem::is_regular_file(folder + "/" + name, failure)) return folder + "/" + name;
    }
  }
  return "";
}
std::string golden_dir() {
  const bool here = std::filesystem::is_directory("tests/golden");  // binaries that were carried to another machine
  return here ? "tests/golden" : std::string(PM_SOURCE_DIR) + "/tests/golden";
}

// Catch2's session: drops the tests that cannot run here from the selection, and says so.
static int run(int argc, char** argv) {
  Catch::Session session;
  if (const int code = session.applyCommandLine(argc, argv); code != 0) return code;
  auto& config = session.configData();
  if (only_lists(config)) return session.run();
  std::string exclude;
  if (!has_cuda()) exclude += "~[cuda]";
  if (data_dir().empty()) exclude += "~[data]";
  if (browser().empty()) exclude += "~[browser]";
  if (!exclude.empty()) {
    if (config.testsOrTags.empty()) config.testsOrTags.emplace_back();
    for (std::string& spec : config.testsOrTags) {  // a comma starts an alternative, \, is part of a name
      for (size_t comma = spec.find(','); comma != std::string::npos; comma = spec.find(',', comma + 1)) {
        if (comma == 0 || spec[comma - 1] != '\\') spec.insert(comma + 1, exclude);
      }
      spec.insert(0, exclude);
    }
  }
  const auto& all = Catch::getAllTestCasesSorted(session.config());
  const auto selected = Catch::filterTests(all, session.config().testSpec(), session.config());
  if (selected.empty() && !exclude.empty()) {
    std::string missing;
    const auto add = [&](bool there, const char* what) {
      if (!there) missing += (missing.empty() ? "" : " or ") + std::string(what);
    };
    add(has_cuda(), "a CUDA device");
    add(!data_dir().empty(), "the data folder PM_DATA");
    add(!browser().empty(), "Chromium");
    std::cout << "skipped: needs " << missing << "\n";
    return kSkipped;
  }
  const int code = session.run();
  return code != 0 ? code : (GuardListener::failed != 0 ? 1 : 0);
}

}  // namespace pm::test

int main(int argc, char** argv) { return pm::test::run(argc, argv); }
