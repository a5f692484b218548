#include "io/data/slide_files.h"

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <set>

#include "engine/core/check.h"

namespace pm::io {
namespace fs = std::filesystem;

bool has_slide_ending(const std::string& path) {
  static const std::set<std::string> kEndings = {".svs", ".tif", ".tiff",    ".ndpi", ".mrxs", ".scn", ".vms",
                                                 ".vmu", ".bif", ".svslide", ".dcm",  ".png",  ".jpg", ".jpeg"};
  std::string ending = fs::path(path).extension().string();
  std::transform(ending.begin(), ending.end(), ending.begin(), [](unsigned char c) { return std::tolower(c); });
  return kEndings.contains(ending);
}

std::string without_slide_ending(const std::string& name) {
  return has_slide_ending(name) ? name.substr(0, name.rfind('.')) : name;
}

SlideFolder::SlideFolder(const std::string& folder) : folder_(folder) {
  PM_CHECK(fs::is_directory(folder), IoError, "{}: there is no such folder of slides", folder);
  for (const fs::directory_entry& entry :
       fs::recursive_directory_iterator(folder, fs::directory_options::skip_permission_denied)) {
    if (!entry.is_regular_file() || !has_slide_ending(entry.path().string())) continue;
    paths_.emplace(without_slide_ending(entry.path().filename().string()), entry.path().string());
  }
  PM_CHECK(!paths_.empty(), IoError, "{}: neither the folder nor those inside it hold slides or images", folder);
}

std::string SlideFolder::find(const std::string& slide_id) const {
  const auto [begin, end] = paths_.equal_range(without_slide_ending(slide_id));
  if (begin == end) return "";
  if (std::next(begin) == end) return begin->second;
  std::vector<std::string> same;  // the id may say which one: a.svs beside a.png
  for (auto it = begin; it != end; ++it) {
    if (fs::path(it->second).filename() == slide_id) same.push_back(it->second);
  }
  PM_CHECK(same.size() == 1, IoError, "{}: slide {} is there more than once: {} and {}", folder_, slide_id,
           begin->second, std::next(begin)->second);
  return same[0];
}

std::vector<std::string> SlideFolder::of_case(const std::string& case_id) const {
  std::vector<std::string> found;
  for (auto it = paths_.lower_bound(case_id); it != paths_.end() && it->first.starts_with(case_id); ++it) {
    const bool ends = it->first.size() == case_id.size();
    if (ends || !std::isalnum(static_cast<unsigned char>(it->first[case_id.size()]))) found.push_back(it->second);
  }
  return found;
}

}  // namespace pm::io
