// Software prefetch: a list of byte ranges that a thread is going to read, handed out piece by piece to
// whoever has load slots to spare.
#pragma once

#include <cstdint>
#include <vector>

struct ByteRange {
  const char* data;  // or an offset from a stream's base
  int64_t size;
};

class ByteStream {
 public:
  ByteStream() = default;
  explicit ByteStream(const std::vector<ByteRange>& ranges, const void* base = nullptr)
      : range_(ranges.data()), end_(ranges.data() + ranges.size()), base_(reinterpret_cast<uintptr_t>(base)) {}

  // The next piece of `size` bytes; it may run past the end of its range, never into unmapped reads,
  // since it is only prefetched. Null when everything has been handed out.
  const char* take(int64_t size) {
    if (range_ == end_) return nullptr;
    const char* piece = reinterpret_cast<const char*>(reinterpret_cast<uintptr_t>(range_->data) + base_ + static_cast<uintptr_t>(at_));
    at_ += size;
    if (at_ >= range_->size) {
      ++range_;
      at_ = 0;
    }
    return piece;
  }

  // Leaves out the next `size` bytes: somebody else prefetches them.
  void skip(int64_t size) {
    while (size > 0 && range_ != end_) {
      const int64_t rest = range_->size - at_;
      at_ += size;
      if (size >= rest) {
        ++range_;
        at_ = 0;
      }
      size -= rest;
    }
  }

 private:
  const ByteRange* range_ = nullptr;
  const ByteRange* end_ = nullptr;
  uintptr_t base_ = 0;
  int64_t at_ = 0;
};

// What a thread is going to read after each of the next few matrix products. GEMMs prefetch it in their spare
// load slots: what comes right after themselves, and of later reads as much as the caches will keep.
class Upcoming {
 public:
  static constexpr int64_t kWindow = 3;  // products known at a time, the current one included

  // Forgets everything; product 0 is next to be announced. At most `max_early` bytes are prefetched that come
  // after the next product: they may push out of the nearer caches what is needed first.
  void restart(int64_t max_early) {
    current_ = known_ = running_ = early_ = 0;
    max_early_ = max_early;
  }

  // What is read between the next product not announced yet and its successor: rank pages, then the KV cache.
  void announce(const ByteStream& pages, const ByteStream& cache) { reads_[known_++ % kWindow] = {pages, cache, 0}; }

  // Product `number` starts.
  void start(int64_t number) {
    running_ = number;
    if (current_ < number) current_ = number;
    early_ = 0;
    for (int64_t n = number + 1; n <= current_ && n < known_; n++) early_ += reads_[n % kWindow].taken;
  }

  // The next `size` bytes, or null.
  const char* take(int64_t size) {
    for (; current_ < known_; current_++) {
      if (current_ > running_ && early_ >= max_early_) return nullptr;
      Reads& reads = reads_[current_ % kWindow];
      const char* piece = reads.pages.take(size);
      if (piece == nullptr) piece = reads.cache.take(size);
      if (piece == nullptr) continue;
      reads.taken += size;
      if (current_ > running_) early_ += size;
      return piece;
    }
    return nullptr;
  }

 private:
  struct Reads {
    ByteStream pages;
    ByteStream cache;
    int64_t taken;
  };

  Reads reads_[kWindow];
  int64_t running_ = 0;
  int64_t current_ = 0;
  int64_t known_ = 0;
  int64_t max_early_ = 0;
  int64_t early_ = 0;  // bytes taken for products after the running one
};
