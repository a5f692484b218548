// Slides as files in a folder.
#pragma once
#include <map>
#include <string>
#include <vector>

namespace pm::io {

// .svs, .tif, .png, ..: what slides and pictures end in, upper or lower case.
bool has_slide_ending(const std::string& path);
// The name without such an ending.
std::string without_slide_ending(const std::string& name);

// The slides below a folder, by name.
class SlideFolder {
 public:
  // Throws IoError when there is no such folder or no slide in it.
  explicit SlideFolder(const std::string& folder);
  // The file of this id, with or without an ending; empty when there is none. Throws IoError when there are two.
  std::string find(const std::string& slide_id) const;
  // All whose name is the case id or goes on with a character other than a letter or digit, by name.
  std::vector<std::string> of_case(const std::string& case_id) const;

 private:
  std::string folder_;
  std::multimap<std::string, std::string> paths_;  // name without ending -> path
};

}  // namespace pm::io
