#include "io/data/image_folder.h"

#include <algorithm>
#include <filesystem>
#include <string_view>
#include <system_error>

#include "engine/core/check.h"
#include "io/data/file.h"

namespace pm::io {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kLayout =
    "pictures are expected as train/CLASS/*.jpg, .jpeg or .png and, where there is a validation set, val/CLASS/*";

// A link to nowhere is a file: reading it says what is wrong.
bool is_folder(const fs::path& path) {
  std::error_code ignored;
  return fs::is_directory(path, ignored);
}

struct Names {
  std::vector<std::string> folders, files;  // sorted by bytes
};

Names names_in(const fs::path& folder) {
  Names names;
  std::error_code error;
  fs::directory_iterator entry(folder, error);
  for (; !error && entry != fs::directory_iterator(); entry.increment(error)) {
    std::string name = entry->path().filename().string();
    if (name.starts_with('.')) continue;
    std::error_code ignored;
    (entry->is_directory(ignored) ? names.folders : names.files).push_back(std::move(name));
  }
  PM_CHECK(!error, IoError, "{}: the folder cannot be read: {}", folder.string(), error.message());
  std::sort(names.folders.begin(), names.folders.end());
  std::sort(names.files.begin(), names.files.end());
  return names;
}

// Adds the pictures of one class and returns how many there are.
int64_t add_class(const fs::path& folder, int64_t label, std::vector<LabelledImage>& images, int64_t& others) {
  int64_t added = 0;
  for (const std::string& name : names_in(folder).files) {
    const std::string ending = file_ending(name);
    if (ending == ".jpg" || ending == ".jpeg" || ending == ".png") {
      images.push_back({(folder / name).string(), label});
      ++added;
    } else {
      ++others;
    }
  }
  return added;
}

}  // namespace

ImageFolder read_image_folder(const std::string& root) {
  std::error_code ignored;
  PM_CHECK(fs::exists(root, ignored), IoError, "{}: there is no such folder; {}", root, kLayout);
  PM_CHECK(is_folder(root), IoError, "{}: is a file, a folder is needed; {}", root, kLayout);
  const fs::path train = fs::path(root) / "train", val = fs::path(root) / "val";
  PM_CHECK(is_folder(train), IoError, "{}: has no folder train; {}", root, kLayout);
  ImageFolder folder{root, names_in(train).folders, {}, {}, 0};
  const std::vector<std::string>& classes = folder.classes;
  PM_CHECK(!classes.empty(), IoError, "{}: has no folder inside; it needs one for each class, with its pictures",
           train.string());
  PM_CHECK(classes.size() >= 2, IoError,
           "{}: has the folder of one class alone, {}; a classifier needs two classes or more", train.string(),
           classes[0]);
  for (size_t i = 0; i < classes.size(); ++i) {
    const fs::path path = train / classes[i];
    PM_CHECK(add_class(path, static_cast<int64_t>(i), folder.train, folder.others) > 0, IoError,
             "{}: the class has no picture; put .jpg, .jpeg or .png files directly into the folder, or remove it",
             path.string());
  }
  if (!fs::exists(val, ignored)) return folder;
  PM_CHECK(is_folder(val), IoError, "{}: is a file, a folder is needed; {}", val.string(), kLayout);
  for (const std::string& name : names_in(val).folders) {
    const auto place = std::lower_bound(classes.begin(), classes.end(), name);
    PM_CHECK(place != classes.end() && *place == name, IoError,
             "{}: train has no class of this name; the folders of val need the names of those of train",
             (val / name).string());
    add_class(val / name, place - classes.begin(), folder.val, folder.others);
  }
  return folder;
}

}  // namespace pm::io
