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

// What a GEMM prefetches in its spare load slots: first what is read right after it, then what is read later.
struct Later {
  ByteStream soon;
  ByteStream* then;

  const char* take(int64_t size) {
    const char* piece = soon.take(size);
    return piece != nullptr || then == nullptr ? piece : then->take(size);
  }
};
