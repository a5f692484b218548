// Runs the program as a user does: a command line in; exit code, stdout and stderr out.
#pragma once
#include <sys/wait.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "tests/support/test.h"

namespace pm::test {

using Json = nlohmann::json;

struct Outcome {
  int code = -1;
  std::string out, err;
};

inline std::string read_text(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// `before` comes before the program in the shell: "ulimit -f 100;".
inline Outcome run_program(const std::string& arguments, const std::string& before = "") {
  const TempDir folder;
  const std::string out = folder.path() + "/out", err = folder.path() + "/err";
  const int status =
      std::system((before + " " + std::string(PM_PROGRAM) + " " + arguments + " >" + out + " 2>" + err).c_str());
  Outcome outcome{WIFEXITED(status) ? WEXITSTATUS(status) : 128, read_text(out), read_text(err)};
  return outcome;
}

inline std::vector<Json> json_lines(const std::string& text) {
  std::vector<Json> lines;
  std::stringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(Json::parse(line));
  return lines;
}

inline bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace pm::test
