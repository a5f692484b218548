#include "io/data/image_loader.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <new>
#include <thread>
#include <utility>

#include "engine/core/check.h"

namespace pm::io {
namespace {

constexpr int64_t kChannels = 3;
constexpr int64_t kMaxWorkers = 256, kMaxSize = 4096, kMaxBatch = int64_t{1} << 20;
// A worker takes images i and batch - 1 - i together, as they may be mixed. Of small ones (some 50 us each) several pairs, so that
// workers seldom meet at the lock; of large ones a single pair, so that all workers end a batch together.
constexpr int64_t kSmallSize = 64, kPairsOfSmall = 8;

void check_options(const ImageLoaderOptions& options) {
  PM_CHECK(options.batch >= 1 && options.batch <= kMaxBatch, ConfigError, "a batch has 1 to {} images, got {}",
           kMaxBatch, options.batch);
  PM_CHECK(options.size >= 1 && options.size <= kMaxSize, ConfigError, "images have sides of 1 to {} pixels, got {}",
           kMaxSize, options.size);
  PM_CHECK(options.workers >= 1 && options.workers <= kMaxWorkers, ConfigError,
           "the loader has 1 to {} workers, got {}", kMaxWorkers, options.workers);
  PM_CHECK(options.ahead >= 1, ConfigError, "the loader reads 1 batch ahead or more, got {}", options.ahead);
  check_options(options.augment);
}

// One batch on its way. The pool's lock guards what follows `batch`; of `batch` each worker writes the places of its own run.
struct Slot {
  std::shared_ptr<const ImageOrder> order;
  ImageBatch batch;
  enum class Memory { none, coming, there } memory = Memory::none;
  int64_t next_pair = 0;
  int64_t pairs_left = 0;                                // not finished
  std::vector<std::pair<int64_t, ImageBatch::Bad>> bad;  // with their places in the batch
  std::exception_ptr error;
};

struct Decoded {
  Image image;  // (size, size, 3)
  int64_t label = 0;
};

// a = share * a + (1 - share) * b and the other way round.
void mix(uint8_t* a, uint8_t* b, int64_t count, float share) {
  const float rest = 1.0f - share;
  for (int64_t i = 0; i < count; ++i) {
    const auto x = static_cast<float>(a[i]), y = static_cast<float>(b[i]);
    a[i] = static_cast<uint8_t>(static_cast<int>(share * x + rest * y + 0.5f));
    b[i] = static_cast<uint8_t>(static_cast<int>(share * y + rest * x + 0.5f));
  }
}

}  // namespace

class ImageLoader::Pool {
 public:
  Pool(std::vector<LabelledImage> images, ImageLoaderOptions options)
      : images_(std::move(images)), options_(std::move(options)), damaged_(images_.size()) {
    check_options(options_);
    for (int64_t i = 0; i < options_.workers; ++i) workers_.emplace_back([this] { work(); });
  }

  ~Pool() {
    {
      const std::lock_guard lock(mutex_);
      stopped_ = true;
      changed_.notify_all();
    }
    workers_.clear();  // joins
  }

  void add(ImageOrder order) {
    const int64_t count = static_cast<int64_t>(order.images.size()), batch = options_.batch;
    const int64_t batches = batches_of(count, batch, order.drop_last);
    PM_CHECK(order.first >= 0 && order.first <= batches, ConfigError, "an order of {} batches cannot begin at {}",
             batches, order.first);
    for (const int64_t image : order.images) {
      PM_CHECK(image >= 0 && image < static_cast<int64_t>(images_.size()), ConfigError,
               "there are {} images, no number {}", images_.size(), image);
    }
    const auto shared = std::make_shared<const ImageOrder>(std::move(order));
    const double mixup = shared->augment ? options_.augment.mixup : 0.0;
    const std::lock_guard lock(mutex_);
    for (int64_t i = shared->first; i < batches; ++i) {
      auto slot = std::make_shared<Slot>();
      slot->order = shared;
      slot->batch.epoch = shared->epoch;
      slot->batch.index = i;
      slot->batch.size = options_.size;
      slot->batch.images = std::min(batch, count - i * batch);
      slot->batch.lambda = draw_mixup(mixup, options_.seed, shared->epoch, i);
      slot->pairs_left = pairs();
      queue_.push_back(std::move(slot));
    }
    changed_.notify_all();
  }

  std::optional<ImageBatch> next() {
    std::shared_ptr<Slot> slot;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return queue_.empty() || queue_.front()->pairs_left == 0; });
      if (queue_.empty()) return std::nullopt;
      slot = std::move(queue_.front());
      queue_.pop_front();
      changed_.notify_all();
    }
    if (slot->error) std::rethrow_exception(slot->error);
    std::sort(slot->bad.begin(), slot->bad.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    for (auto& bad : slot->bad) slot->batch.bad.push_back(std::move(bad.second));
    return std::move(slot->batch);
  }

 private:
  struct Task {
    std::shared_ptr<Slot> slot;
    int64_t begin = 0, end = 0;  // pairs; none: the batch's memory
  };

  int64_t pairs() const { return (options_.batch + 1) / 2; }
  int64_t image_values() const { return options_.size * options_.size * kChannels; }

  // What to do next, with the lock held. Memory comes first: while one worker waits for its pages the others read on.
  std::optional<Task> take() {
    const auto window = std::min(queue_.size(), static_cast<size_t>(options_.ahead));
    for (size_t i = 0; i < window; ++i) {
      Slot& slot = *queue_[i];
      if (slot.memory != Slot::Memory::none) continue;
      slot.memory = Slot::Memory::coming;
      return Task{queue_[i]};
    }
    const int64_t run = options_.size <= kSmallSize ? kPairsOfSmall : 1;
    for (size_t i = 0; i < window; ++i) {
      Slot& slot = *queue_[i];
      if (slot.memory != Slot::Memory::there || slot.next_pair == pairs()) continue;
      const int64_t begin = slot.next_pair;
      slot.next_pair = std::min(begin + run, pairs());
      return Task{queue_[i], begin, slot.next_pair};
    }
    return std::nullopt;
  }

  void work() {
    while (true) {
      std::optional<Task> task;
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return stopped_ || (task = take()); });
        if (stopped_) return;
      }
      std::vector<std::pair<int64_t, ImageBatch::Bad>> bad;
      std::exception_ptr error;
      const bool memory = task->begin == task->end;
      try {
        memory ? allocate(task->slot->batch) : fill(*task, bad);
      } catch (...) {
        error = std::current_exception();
      }
      finish(*task->slot, task->end - task->begin, std::move(bad), error);
    }
  }

  void finish(Slot& slot, int64_t pairs_done, std::vector<std::pair<int64_t, ImageBatch::Bad>> bad,
              const std::exception_ptr& error) {
    const std::lock_guard lock(mutex_);
    const bool failed = error && !slot.error;
    if (failed) {  // nobody begins what is left of the batch
      slot.error = error;
      slot.pairs_left -= pairs() - slot.next_pair;
      slot.next_pair = pairs();
    }
    std::move(bad.begin(), bad.end(), std::back_inserter(slot.bad));
    slot.pairs_left -= pairs_done;
    slot.memory = Slot::Memory::there;
    if (pairs_done == 0 || slot.pairs_left == 0) changed_.notify_all();
  }

  void allocate(ImageBatch& batch) const {
    const auto images = static_cast<size_t>(options_.batch);
    batch.rgb.resize(images * static_cast<size_t>(image_values()));
    batch.labels.resize(images);
    batch.partners.resize(images);
  }

  void fill(const Task& task, std::vector<std::pair<int64_t, ImageBatch::Bad>>& bad) {
    const Slot& slot = *task.slot;
    ImageBatch& batch = task.slot->batch;
    std::optional<Decoded> repeated;  // the first image, where the batch is not full
    const auto place = [&](int64_t i) {
      const bool real = i < batch.images;
      if (!real && !repeated) repeated = produce(slot, 0, nullptr);
      const Decoded decoded = real ? produce(slot, i, &bad) : *repeated;
      std::copy(decoded.image.rgb.begin(), decoded.image.rgb.end(), pixels(batch, i));
      batch.labels[static_cast<size_t>(i)] = decoded.label;
    };
    const auto share = static_cast<float>(batch.lambda);
    for (int64_t i = task.begin; i < task.end; ++i) {
      if (stopped_) return;
      const int64_t partner = options_.batch - 1 - i;
      place(i);
      if (partner != i) place(partner);
      const bool mixed = batch.lambda < 1.0;
      if (mixed && partner != i) mix(pixels(batch, i), pixels(batch, partner), image_values(), share);
      const auto a = static_cast<size_t>(i), b = static_cast<size_t>(partner);
      batch.partners[a] = batch.labels[mixed ? b : a];
      batch.partners[b] = batch.labels[mixed ? a : b];
    }
  }

  uint8_t* pixels(ImageBatch& batch, int64_t i) const { return batch.rgb.data() + i * image_values(); }

  // The image at a place of a batch, or the one that stands in for it. Files that were damaged once are not read again for that.
  Decoded produce(const Slot& slot, int64_t place, std::vector<std::pair<int64_t, ImageBatch::Bad>>* bad) {
    const std::vector<int64_t>& order = slot.order->images;
    const int64_t count = static_cast<int64_t>(order.size()), start = slot.batch.index * options_.batch + place;
    std::string first_reason;
    for (int64_t k = 0; k < count; ++k) {
      const int64_t index = order[static_cast<size_t>((start + k) % count)];
      std::atomic<bool>& damaged = damaged_[static_cast<size_t>(index)];
      if (k > 0 && damaged) continue;
      if (stopped_) break;
      const LabelledImage& labelled = images_[static_cast<size_t>(index)];
      Image image;
      std::string reason = decode(labelled.path, image);
      if (reason.empty()) return {augmented(image, *slot.order, index), labelled.label};
      damaged = true;
      if (k > 0) continue;
      first_reason = reason;
      if (bad) bad->push_back({place, {labelled.path, std::move(reason)}});
    }
    throw IoError(fmt::format("none of the {} images can be decoded; {}: {}", count,
                              images_[static_cast<size_t>(order[static_cast<size_t>(start % count)])].path,
                              first_reason));
  }

  // What is wrong with the file; empty: nothing.
  static std::string decode(const std::string& path, Image& image) {
    try {
      image = read_image(path);
      return "";
    } catch (const std::bad_alloc&) {
      return "there is not enough memory to decode it";
    } catch (const Error& error) {
      const std::string reason = error.what(), name = path + ": ";
      return reason.starts_with(name) ? reason.substr(name.size()) : reason;
    }
  }

  Image augmented(const Image& image, const ImageOrder& order, int64_t index) const {
    const ImageAugmentOptions& augment = options_.augment;
    if (!order.augment) return centre_crop(image, options_.size);
    const CropBox box = draw_crop(augment, image.width, image.height, options_.seed, order.epoch, index);
    Image result = resample(image, box, options_.size);
    erase(result, augment, options_.seed, order.epoch, index);
    return result;
  }

  const std::vector<LabelledImage> images_;
  const ImageLoaderOptions options_;
  std::vector<std::atomic<bool>> damaged_;  // of images_: could not be decoded once

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Slot>> queue_;  // not taken yet, in order; the first `ahead` of them may use memory
  std::atomic<bool> stopped_ = false;        // changes under the lock
  std::vector<std::jthread> workers_;        // last: they use all of the above
};

ImageLoader::ImageLoader(std::vector<LabelledImage> images, ImageLoaderOptions options)
    : pool_(std::make_unique<Pool>(std::move(images), std::move(options))) {}
ImageLoader::~ImageLoader() = default;
void ImageLoader::add(ImageOrder order) { pool_->add(std::move(order)); }
std::optional<ImageBatch> ImageLoader::next() { return pool_->next(); }

int64_t batches_of(int64_t images, int64_t batch, bool drop_last) {
  PM_CHECK(images >= 0 && batch >= 1, ConfigError, "cannot share {} images among batches of {}", images, batch);
  return drop_last ? images / batch : (images + batch - 1) / batch;
}

}  // namespace pm::io
