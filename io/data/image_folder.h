// A folder of labelled pictures, as image classifiers take them: ROOT/train/CLASS/*.jpg|jpeg|png and, where there is one,
// ROOT/val/CLASS/..
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace pm::io {

struct LabelledImage {
  std::string path;
  int64_t label = 0;
};

struct ImageFolder {
  std::string root;
  std::vector<std::string> classes;       // names of train's folders, sorted by bytes; the label is the place here
  std::vector<LabelledImage> train, val;  // sorted by class, then file name; val may be empty
  int64_t others = 0;  // files in class folders that are neither JPEG nor PNG by their ending (any case): left out
};

// By names alone, no picture is opened. Takes files that lie directly in a class folder; hidden entries (leading dot) are
// skipped, links to folders and files followed. A class may be missing in val, or be empty there.
// Throws IoError that names the folder, the reason and what would be right: ROOT missing or no folder, no train, fewer than two
// class folders in it, one of them without a picture, a class in val that train lacks, a folder that cannot be read.
ImageFolder read_image_folder(const std::string& root);

}  // namespace pm::io
