#include "io/data/slide_cache.h"

#include <cstring>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "engine/core/check.h"
#include "io/data/atomic_file.h"
#include "io/data/file.h"

namespace pm::io {
namespace fs = std::filesystem;
namespace {

// Layout: magic, length of the header (u64), checksum of header and pixels (u64), header (JSON), pixels (height, width, 3).
// Numbers as this machine writes them.
constexpr char kMagic[8] = {'P', 'M', 'S', 'L', 'I', 'D', 'E', '1'};
constexpr int kReaderVersion = 1;  // raise it when read_slide gives other pixels for the same slide
constexpr int64_t kMaxHeader = 1 << 20;
constexpr int64_t kChannels = 3;

// FNV-1a's idea on words of 8 bytes, the rest byte by byte: finds damage, is no protection against malice.
uint64_t checksum(const void* data, size_t bytes, uint64_t hash = 0xcbf29ce484222325u) {
  constexpr uint64_t kPrime = 0x100000001b3u;
  const auto* byte = static_cast<const uint8_t*>(data);
  const auto mix = [&](uint64_t word) {
    hash = (hash ^ word) * kPrime;
    hash ^= hash >> 29;
  };
  for (; bytes >= sizeof(uint64_t); bytes -= sizeof(uint64_t), byte += sizeof(uint64_t)) {
    uint64_t word;
    std::memcpy(&word, byte, sizeof(word));
    mix(word);
  }
  for (; bytes > 0; --bytes, ++byte) mix(*byte);
  return hash;
}

struct Opened {
  std::unique_ptr<InputFile> file;
  nlohmann::json header;
  uint64_t checksum = 0, header_checksum = 0;
  int64_t pixels_at = 0, width = 0, height = 0;
};

// Throws IoError or a JSON error when the file is none of ours, cut, or for another key.
Opened open_cached(const std::string& path, const std::string& key) {
  Opened opened;
  opened.file = std::make_unique<InputFile>(path);
  char magic[sizeof(kMagic)];
  uint64_t length = 0;
  opened.file->read(0, magic, sizeof(magic));
  opened.file->read(sizeof(magic), &length, sizeof(length));
  opened.file->read(sizeof(magic) + sizeof(length), &opened.checksum, sizeof(opened.checksum));
  constexpr int64_t kFront = sizeof(magic) + sizeof(length) + sizeof(opened.checksum);
  PM_CHECK(std::memcmp(magic, kMagic, sizeof(magic)) == 0 && length <= static_cast<uint64_t>(kMaxHeader), IoError,
           "{}: is no cached slide", path);
  std::string text(length, '\0');
  opened.file->read(kFront, text.data(), static_cast<int64_t>(length));
  opened.header_checksum = checksum(text.data(), text.size());
  opened.header = nlohmann::json::parse(text);
  opened.pixels_at = kFront + static_cast<int64_t>(length);
  opened.width = opened.header.at("width").get<int64_t>();
  opened.height = opened.header.at("height").get<int64_t>();
  const int64_t bytes = opened.file->size() - opened.pixels_at;
  const bool fits = opened.width > 0 && opened.height > 0 && opened.width <= bytes && opened.height <= bytes &&
                    bytes % kChannels == 0 && bytes / kChannels / opened.width == opened.height &&
                    bytes == opened.width * opened.height * kChannels;
  PM_CHECK(fits && opened.header.at("key").get<std::string>() == key, IoError, "{}: is cut or belongs to another slide",
           path);
  return opened;
}

}  // namespace

SlideCache::SlideCache(const std::string& folder) : folder_(folder) { make_folder(folder); }

std::string SlideCache::key(const std::string& slide, const SlideOptions& options) {
  std::error_code failure;
  const fs::path path = fs::canonical(slide, failure);
  PM_CHECK(!failure, IoError, "{}: there is no such file", slide);
  const auto size = fs::is_directory(path) ? 0 : fs::file_size(path, failure);
  const auto changed = fs::last_write_time(path, failure).time_since_epoch().count();
  return fmt::format("reader {}\npath {}\nsize {}\nchanged {}\nmpp {:.17g}\nslide_mpp {:.17g}\n", kReaderVersion,
                     path.string(), size, changed, options.mpp, options.slide_mpp.value_or(0.0));
}

std::string SlideCache::file_of(const std::string& key) const {
  const uint64_t one = checksum(key.data(), key.size()), two = checksum(key.data(), key.size(), ~one);
  return fmt::format("{}/{:016x}{:016x}.slide", folder_, one, two);
}

std::optional<CachedSize> SlideCache::size(const std::string& key) const {
  const std::string path = file_of(key);
  if (!fs::exists(path)) return std::nullopt;
  try {
    const Opened opened = open_cached(path, key);
    return CachedSize{opened.width, opened.height};
  } catch (const std::exception&) {  // load() says so
    return std::nullopt;
  }
}

std::optional<SlideImage> SlideCache::load(const std::string& key, bool& damaged) const {
  const std::string path = file_of(key);
  damaged = false;
  if (!fs::exists(path)) return std::nullopt;
  try {
    const Opened opened = open_cached(path, key);
    const nlohmann::json& header = opened.header;
    SlideImage slide;
    slide.image.width = opened.width;
    slide.image.height = opened.height;
    slide.image.rgb.resize(static_cast<size_t>(opened.width * opened.height * kChannels));
    opened.file->read(opened.pixels_at, slide.image.rgb.data(), static_cast<int64_t>(slide.image.rgb.size()));
    PM_CHECK(checksum(slide.image.rgb.data(), slide.image.rgb.size(), opened.header_checksum) == opened.checksum,
             IoError, "{}: the file is damaged", path);
    slide.mpp = header.at("mpp");
    slide.mpp_source = header.at("mpp_source");
    slide.tiles = header.at("tiles");
    slide.bad_tiles = header.at("bad_tiles");
    slide.level = header.at("level");
    slide.level_downsample = header.at("level_downsample");
    slide.level0_width = header.at("level0_width");
    slide.level0_height = header.at("level0_height");
    slide.scale_x = header.at("scale_x");
    slide.scale_y = header.at("scale_y");
    slide.format = header.at("format");
    return slide;
  } catch (const std::bad_alloc&) {
    throw;
  } catch (const std::exception&) {
    damaged = true;
    return std::nullopt;
  }
}

void SlideCache::store(const std::string& key, const SlideImage& slide) const {
  const nlohmann::json header = {{"key", key},
                                 {"width", slide.image.width},
                                 {"height", slide.image.height},
                                 {"mpp", slide.mpp},
                                 {"mpp_source", slide.mpp_source},
                                 {"tiles", slide.tiles},
                                 {"bad_tiles", slide.bad_tiles},
                                 {"level", slide.level},
                                 {"level_downsample", slide.level_downsample},
                                 {"level0_width", slide.level0_width},
                                 {"level0_height", slide.level0_height},
                                 {"scale_x", slide.scale_x},
                                 {"scale_y", slide.scale_y},
                                 {"format", slide.format}};
  const std::string text = header.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  const uint64_t length = text.size();
  const uint64_t sum = checksum(slide.image.rgb.data(), slide.image.rgb.size(), checksum(text.data(), text.size()));
  AtomicFile file(file_of(key));
  file.write(kMagic, sizeof(kMagic));
  file.write(&length, sizeof(length));
  file.write(&sum, sizeof(sum));
  file.write(text);
  file.write(slide.image.rgb.data(), slide.image.rgb.size());
  file.commit();
}

}  // namespace pm::io
