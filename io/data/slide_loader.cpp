#include "io/data/slide_loader.h"

#include <omp.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <new>
#include <thread>

#include "engine/core/check.h"
#include "io/data/slide_cache.h"
#include "io/slide/slide.h"

namespace pm::io {
namespace {

constexpr int64_t kChannels = 3;
constexpr int64_t kMaxWorkers = 256;
constexpr int64_t kAheadPerWorker = 4;  // samples begun and not taken yet, at most

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void check_options(const LoaderOptions& options) {
  PM_CHECK(options.workers >= 1 && options.workers <= kMaxWorkers, ConfigError,
           "the loader has 1 to {} workers, got {}", kMaxWorkers, options.workers);
  PM_CHECK(options.max_bytes > 0, ConfigError, "the loader's memory limit must be positive, got {} bytes",
           options.max_bytes);
  PM_CHECK(options.region_size >= 0, ConfigError, "region_size is not negative, got {}", options.region_size);
  PM_CHECK(options.region_size > 0 || options.keep_background, ConfigError,
           "background can be left out only where the size of the windows is known");
  const AugmentOptions& augment = options.augment;
  PM_CHECK(augment.stain >= 0.0 && augment.stain < 1.0 && augment.brightness >= 0.0 && augment.brightness < 1.0,
           ConfigError, "stain and brightness vary by a share from 0 to below 1, got {} and {}", augment.stain,
           augment.brightness);
  PM_CHECK(augment.drop_background >= 0.0 && augment.drop_background <= 1.0, ConfigError,
           "the share of background to drop is from 0 to 1, got {}", augment.drop_background);
}

// One sample on its way. Fields other than the first line belong to the worker that has it, then, once done, to the consumer.
struct Slot {
  int64_t slide, epoch, index;
  bool augment;
  std::stop_token cancelled;  // clear() and stop()
  int64_t bytes = 0;          // admitted for it
  bool done = false;
  SlideSample sample;
};

int64_t picture_bytes(int64_t width, int64_t height) { return width * height * kChannels; }

}  // namespace

class SlideLoader::Pool {
 public:
  Pool(std::vector<SlideRow> rows, LoaderOptions options) : rows_(std::move(rows)), options_(std::move(options)) {
    check_options(options_);
    if (!options_.cache.empty()) cache_.emplace(options_.cache);
    for (int64_t i = 0; i < options_.workers; ++i) workers_.emplace_back([this] { work(); });
  }

  ~Pool() {
    stop();
    workers_.clear();  // joins
  }

  void add(const LoaderOrder& order) {
    const auto count = static_cast<int64_t>(order.slides.size());
    PM_CHECK(order.first >= 0 && order.first <= count, ConfigError, "an order of {} samples cannot begin at {}", count,
             order.first);
    for (const int64_t slide : order.slides) {
      PM_CHECK(slide >= 0 && slide < static_cast<int64_t>(rows_.size()), ConfigError,
               "there are {} slides, no number {}", rows_.size(), slide);
    }
    const std::lock_guard lock(mutex_);
    if (queue_.empty()) position_ = {order.epoch, order.first};
    for (int64_t i = order.first; i < count; ++i) {
      auto slot = std::make_shared<Slot>();
      slot->slide = order.slides[static_cast<size_t>(i)];
      slot->epoch = order.epoch;
      slot->index = i;
      slot->augment = order.augment;
      slot->cancelled = cancel_.get_token();
      queue_.push_back(std::move(slot));
    }
    changed_.notify_all();
  }

  std::optional<SlideSample> next(const std::stop_token& stop) {
    std::unique_lock lock(mutex_);
    const double start = seconds_now();
    changed_.wait(lock, stop, [&] { return stopped_ || queue_.empty() || queue_.front()->done; });
    stats_.wait_seconds += seconds_now() - start;
    if (stopped_ || stop.stop_requested() || queue_.empty()) return std::nullopt;
    const std::shared_ptr<Slot> slot = std::move(queue_.front());
    queue_.pop_front();
    --begun_;
    --admitted_;
    bytes_ -= slot->bytes;
    position_ = {slot->epoch, slot->index + 1};
    changed_.notify_all();
    return std::move(slot->sample);
  }

  void clear() {
    const std::lock_guard lock(mutex_);
    drop_all();
    cancel_ = {};
  }

  void stop() {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
    drop_all();
  }

  LoaderPosition position() const {
    const std::lock_guard lock(mutex_);
    return position_;
  }

  LoaderStats stats() const {
    const std::lock_guard lock(mutex_);
    return stats_;
  }

 private:
  // Slots still with a worker give their bytes back themselves.
  void drop_all() {
    cancel_.request_stop();
    for (const auto& slot : queue_) {
      if (slot->done) bytes_ -= slot->bytes;
    }
    queue_.clear();
    begun_ = admitted_ = 0;
    changed_.notify_all();
  }

  void work() {
    const int64_t cores = std::max<int64_t>(1, std::thread::hardware_concurrency());
    omp_set_num_threads(static_cast<int>(std::max<int64_t>(1, cores / options_.workers)));  // of this thread alone
    while (true) {
      std::shared_ptr<Slot> slot;
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] {
          return stopped_ ||
                 (begun_ < static_cast<int64_t>(queue_.size()) && begun_ < kAheadPerWorker * options_.workers);
        });
        if (stopped_) return;
        slot = queue_[static_cast<size_t>(begun_++)];
      }
      serve(*slot);
    }
  }

  void serve(Slot& slot) {
    const double start = seconds_now();
    SlideSample& sample = slot.sample;
    sample.slide = slot.slide;
    sample.epoch = slot.epoch;
    sample.index = slot.index;
    const SlideRow& row = rows_[static_cast<size_t>(slot.slide)];
    int64_t need = 0;
    guarded(row, sample, [&] {
      need = bytes_needed(row, slot.augment);
      PM_CHECK(need <= options_.max_bytes, IoError,
               "{}: reading the slide at {:g} um per pixel takes about {} MB, the loader may use {} MB: raise its "
               "memory limit or use a "
               "larger --mpp",
               row.path, options_.mpp, need / 1'000'000 + 1, options_.max_bytes / 1'000'000);
    });
    if (!admit(slot, sample.error.empty() ? need : 0)) return;
    bool cancelled = false;
    if (sample.error.empty()) {
      try {
        guarded(row, sample, [&] { fill(row, slot); });
      } catch (const Cancelled&) {
        cancelled = true;
      }
    }
    if (!sample.error.empty()) sample.image = {};
    sample.seconds = seconds_now() - start;
    finish(slot, cancelled);
  }

  // What goes wrong with a slide is its sample's error.
  template <typename Work>
  static void guarded(const SlideRow& row, SlideSample& sample, Work&& work) {
    try {
      work();
    } catch (const Cancelled&) {
      throw;
    } catch (const std::bad_alloc&) {
      sample.error = fmt::format("{}: there is not enough memory to read the slide", row.path);
    } catch (const std::exception& error) {
      sample.error = error.what();
    }
  }

  // In the order of the queue, so that the first sample not taken yet never waits for a later one. False: cancelled.
  bool admit(Slot& slot, int64_t need) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] {
      if (slot.cancelled.stop_requested()) return true;
      return queue_[static_cast<size_t>(admitted_)].get() == &slot && bytes_ + need <= options_.max_bytes;
    });
    if (slot.cancelled.stop_requested()) return false;
    ++admitted_;
    bytes_ += need;
    slot.bytes = need;
    stats_.peak_bytes = std::max(stats_.peak_bytes, bytes_);
    changed_.notify_all();
    return true;
  }

  void finish(Slot& slot, bool cancelled) {
    const std::lock_guard lock(mutex_);
    bytes_ -= slot.bytes;
    if (!cancelled && !slot.cancelled.stop_requested()) {
      slot.bytes = static_cast<int64_t>(slot.sample.image.rgb.size());
      bytes_ += slot.bytes;
      slot.done = true;
      if (!slot.sample.error.empty()) {
        ++stats_.errors;
      } else if (slot.sample.from_cache) {
        ++stats_.from_cache;
      } else {
        ++stats_.read;
      }
    }
    changed_.notify_all();
  }

  SlideOptions slide_options(const SlideRow& row, const std::stop_token& stop = {}) const {
    SlideOptions slide;
    slide.mpp = options_.mpp;
    slide.slide_mpp = row.mpp ? row.mpp : options_.slide_mpp;
    slide.stop = stop;
    return slide;
  }

  int64_t bytes_needed(const SlideRow& row, bool augment) const {
    const SlideOptions slide = slide_options(row);
    const auto cached = cache_ ? cache_->size(SlideCache::key(row.path, slide)) : std::nullopt;
    if (cached) return loader_bytes(options_, cached->width, cached->height, 0, augment);
    const SlidePlan plan = plan_slide(row.path, slide);
    return loader_bytes(options_, plan.width + 1, plan.height + 1, plan.read_bytes, augment);
  }

  SlideImage read(const SlideRow& row, Slot& slot) {
    const SlideOptions slide = slide_options(row, slot.cancelled);
    if (!cache_) return read_slide(row.path, slide);
    const std::string key = SlideCache::key(row.path, slide);
    bool damaged = false;
    if (auto cached = cache_->load(key, damaged)) {
      slot.sample.from_cache = true;
      return std::move(*cached);
    }
    SlideImage result = read_slide(row.path, slide);
    {
      const std::lock_guard lock(mutex_);
      if (damaged) ++stats_.cache_rebuilt;
      if (!stats_.cache_error.empty()) return result;
    }
    try {
      cache_->store(key, result);
    } catch (const Error& error) {  // the run goes on without it
      const std::lock_guard lock(mutex_);
      stats_.cache_error = error.what();
    }
    return result;
  }

  void fill(const SlideRow& row, Slot& slot) {
    SlideSample& sample = slot.sample;
    SlideImage slide = read(row, slot);
    sample.mpp = slide.mpp;
    sample.mpp_source = slide.mpp_source;
    sample.tiles = slide.tiles;
    sample.bad_tiles = slide.bad_tiles;
    Augmentation augmentation;
    if (slot.augment)
      augmentation = draw_augmentation(options_.augment, options_.region_size, options_.seed, slot.epoch, slot.index);
    sample.image = move_pixels(std::move(slide.image), augmentation);
    if (options_.region_size > 0) leave_out_background(slot);
    change_colours(sample.image, augmentation);
  }

  void leave_out_background(Slot& slot) const {
    SlideSample& sample = slot.sample;
    const int64_t side = options_.region_size;
    sample.grid = {(sample.image.height + side - 1) / side, (sample.image.width + side - 1) / side, side};
    sample.windows = sample.grid.count();
    const double share = !options_.keep_background ? 1.0 : slot.augment ? options_.augment.drop_background : 0.0;
    if (share == 0.0) return;
    TissueWindows tissue = io::leave_out_background(
        std::move(sample.image), sample.mpp, side, options_.raster, options_.tissue, [&](int64_t window) {
          return share < 1.0 && !draw_drop(share, options_.seed, slot.epoch, slot.index, window);
        });
    sample.image = std::move(tissue.image);
    sample.background = tissue.background;
    sample.left_out = tissue.left_out;
    sample.no_tissue = tissue.no_tissue;
    sample.kept = std::move(tissue.kept);
  }

  const std::vector<SlideRow> rows_;
  const LoaderOptions options_;
  std::optional<SlideCache> cache_;

  mutable std::mutex mutex_;
  std::condition_variable_any changed_;
  std::deque<std::shared_ptr<Slot>>
      queue_;  // not taken yet, in order: the first admitted_ may use memory, the first begun_ have a worker
  int64_t begun_ = 0, admitted_ = 0;
  int64_t bytes_ = 0;
  bool stopped_ = false;
  std::stop_source cancel_;
  LoaderPosition position_;
  LoaderStats stats_;
  std::vector<std::jthread> workers_;  // last: they use all of the above
};

SlideLoader::SlideLoader(std::vector<SlideRow> rows, LoaderOptions options)
    : pool_(std::make_unique<Pool>(std::move(rows), std::move(options))) {}
SlideLoader::~SlideLoader() = default;
void SlideLoader::add(LoaderOrder order) { pool_->add(order); }
std::optional<SlideSample> SlideLoader::next(std::stop_token stop) { return pool_->next(stop); }
void SlideLoader::clear() { pool_->clear(); }
void SlideLoader::stop() { pool_->stop(); }
LoaderPosition SlideLoader::position() const { return pool_->position(); }
LoaderStats SlideLoader::stats() const { return pool_->stats(); }

int64_t loader_bytes(const LoaderOptions& options, int64_t width, int64_t height, int64_t read_bytes, bool augment) {
  const int64_t side = options.region_size, shift = augment && options.augment.shift ? side : 0;
  const int64_t base = picture_bytes(width, height),
                moved = augment ? picture_bytes(width + shift, height + shift) : base;
  const bool packs = !options.keep_background || (augment && side > 0 && options.augment.drop_background > 0.0);
  const int64_t packed = packs ? picture_bytes(width + shift + side, height + shift + side) : 0;
  return std::max({read_bytes, augment ? base + moved : base, moved + packed});
}

}  // namespace pm::io
