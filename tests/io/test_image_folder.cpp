#include <filesystem>

#include "engine/core/error.h"
#include "io/data/image_folder.h"
#include "tests/io/pictures.h"
#include "tests/support/test.h"

namespace pm::test {
namespace fs = std::filesystem;
namespace {

// Files by name alone: the folder is read without opening them.
class Tree {
 public:
  explicit Tree(const std::vector<std::string>& files) {
    for (const std::string& file : files) add(file);
  }
  void add(const std::string& file) {
    fs::create_directories(fs::path(at(file)).parent_path());
    write_bytes(at(file), "x");
  }
  std::string at(const std::string& name) const { return dir_.path() + "/" + name; }
  std::string root() const { return at("set"); }
  std::string problem() const {
    return error_message([&] { io::read_image_folder(root()); });
  }

 private:
  TempDir dir_;
};

std::vector<std::string> names(const Tree& tree, const std::vector<io::LabelledImage>& images) {
  std::vector<std::string> result;
  for (const io::LabelledImage& image : images)
    result.push_back(std::to_string(image.label) + " " + fs::relative(image.path, tree.root()).string());
  return result;
}

}  // namespace

TEST_CASE("an image folder is read in the order of bytes", "[cpu]") {
  Tree tree({"set/train/dog/b.jpg", "set/train/dog/a.PNG", "set/train/dog/B.JPeG", "set/train/Cat/2.jpg",
             "set/train/Cat/10.jpg", "set/train/\xc3\xa4ther/1.png", "set/val/dog/v.jpg", "set/val/Cat/z.jpeg"});
  const io::ImageFolder folder = io::read_image_folder(tree.root());
  CHECK(folder.root == tree.root());
  CHECK(folder.classes == std::vector<std::string>{"Cat", "dog", "\xc3\xa4ther"});
  CHECK(names(tree, folder.train) == std::vector<std::string>{"0 train/Cat/10.jpg", "0 train/Cat/2.jpg",
                                                              "1 train/dog/B.JPeG", "1 train/dog/a.PNG",
                                                              "1 train/dog/b.jpg", "2 train/\xc3\xa4ther/1.png"});
  CHECK(names(tree, folder.val) == std::vector<std::string>{"0 val/Cat/z.jpeg", "1 val/dog/v.jpg"});
  CHECK(folder.others == 0);
  CHECK(io::read_image_folder(tree.root() + "/").train[3].path == tree.at("set/train/dog/a.PNG"));
}

TEST_CASE("an image folder takes pictures directly in class folders alone", "[cpu]") {
  Tree tree({"set/train/a/1.jpg", "set/train/a/notes.txt", "set/train/a/2.jpg.tmp", "set/train/a/jpg",
             "set/train/a/3.gif", "set/train/a/.4.jpg", "set/train/a/more/5.jpg", "set/train/.hidden/6.jpg",
             "set/train/7.jpg", "set/train/list.csv", "set/train/b/8.png", "set/readme.jpg", "set/.DS_Store",
             "elsewhere/9.jpg", "elsewhere/10.png"});
  fs::create_directory_symlink(tree.at("elsewhere"), tree.at("set/train/c"));
  fs::create_symlink(tree.at("elsewhere/9.jpg"), tree.at("set/train/b/link.jpg"));
  const io::ImageFolder folder = io::read_image_folder(tree.root());
  CHECK(folder.classes == std::vector<std::string>{"a", "b", "c"});
  CHECK(names(tree, folder.train).size() == 5);
  std::vector<std::string> files;
  for (const io::LabelledImage& image : folder.train) files.push_back(fs::path(image.path).filename().string());
  CHECK(files == std::vector<std::string>{"1.jpg", "8.png", "link.jpg", "10.png", "9.jpg"});
  CHECK(folder.train.back().label == 2);
  CHECK(folder.others == 4);
  CHECK(folder.val.empty());
}

TEST_CASE("validation may lack classes and count other files", "[cpu]") {
  Tree tree({"set/train/a/1.jpg", "set/train/b/2.jpg", "set/val/b/3.jpg", "set/val/b/thumbs.db"});
  fs::create_directory(tree.at("set/val/a"));
  const io::ImageFolder folder = io::read_image_folder(tree.root());
  CHECK(names(tree, folder.val) == std::vector<std::string>{"1 val/b/3.jpg"});
  CHECK(folder.others == 1);
}

TEST_CASE("what is wrong with an image folder is said", "[cpu]") {
  Tree tree({"file"});
  const auto refuse = [&](const std::string& name, const std::string& reason, const std::string& right) {
    CHECK_THAT(tree.problem(),
               ContainsSubstring(tree.at(name) + ": ") && ContainsSubstring(reason) && ContainsSubstring(right));
  };
  refuse("set", "there is no such folder", "train/CLASS/*.jpg, .jpeg or .png");
  fs::create_symlink(tree.at("file"), tree.at("set"));
  refuse("set", "is a file, a folder is needed", "train/CLASS");
  fs::remove(tree.at("set"));
  tree.add("set/val/a/1.jpg");
  refuse("set", "has no folder train", "train/CLASS");
  tree.add("set/train");
  refuse("set", "has no folder train", "train/CLASS");
  fs::remove(tree.at("set/train"));
  tree.add("set/train/1.jpg");
  refuse("set/train", "has no folder inside", "one for each class");
  tree.add("set/train/a/1.jpg");
  refuse("set/train", "one class alone, a", "two classes or more");
  tree.add("set/train/b/notes.txt");
  tree.add("set/train/b/deeper/2.jpg");
  refuse("set/train/b", "the class has no picture", "directly into the folder");
  tree.add("set/train/b/2.jpg");
  CHECK(tree.problem() == "");
  tree.add("set/val/ab/3.jpg");
  refuse("set/val/ab", "train has no class of this name", "the names of those of train");
  fs::remove_all(tree.at("set/val"));
  tree.add("set/val");
  refuse("set/val", "is a file, a folder is needed", "val/CLASS");
}

}  // namespace pm::test
