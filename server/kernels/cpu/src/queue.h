// Equal shares with stealing: each thread takes its own items from the front, and when it has none left,
// other threads' from the back. Whoever is displaced by another process, or gets less of the memory's
// bandwidth, holds the rest up for one item at most.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "worker.h"

class StealQueue {
 public:
  explicit StealQueue(int threads) : taken_(new Taken[static_cast<size_t>(threads)]), threads_(threads) {}

  // Makes all items available again. Only while no thread uses the queue.
  void reset() {
    for (int t = 0; t < threads_; t++) taken_[t].count.store(0, std::memory_order_relaxed);
  }

  // The next of the thread's own items 0 .. items - 1, or -1.
  int64_t take_own(int thread, int64_t items) { return take(thread, items, 1, 0); }

  // An item of another thread, counted from the end of its own, or -1.
  int64_t steal(int victim, int64_t items) {
    const int64_t back = take(victim, items, kBack, 32);
    return back < 0 ? back : items - 1 - back;
  }

 private:
  static constexpr uint64_t kBack = uint64_t{1} << 32;  // items taken from the front, and from the back

  struct alignas(64) Taken {
    std::atomic<uint64_t> count{0};
  };

  int64_t take(int thread, int64_t items, uint64_t one, int shift) {
    std::atomic<uint64_t>& count = taken_[thread].count;
    uint64_t seen = count.load(std::memory_order_relaxed);
    do {
      if (static_cast<int64_t>((seen & (kBack - 1)) + (seen >> 32)) >= items) return -1;
    } while (!count.compare_exchange_weak(seen, seen + one, std::memory_order_relaxed));
    return static_cast<int64_t>(shift == 0 ? seen & (kBack - 1) : seen >> 32);
  }

  std::unique_ptr<Taken[]> taken_;
  int threads_;
};
