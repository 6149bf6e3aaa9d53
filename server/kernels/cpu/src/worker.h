// The threads of one step: every kernel is called by all of them and takes its own share of the work.
#pragma once

#include <sched.h>

#include <atomic>
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

// Spins briefly, then gives the core away: beside a busy process a purely spinning barrier waits for
// whole time slices of the thread that was displaced.
class Barrier {
 public:
  void wait(int threads) {
    if (threads == 1) return;
    const uint32_t phase = phase_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; spins++) {
      if (spins < kSpins) {
        relax();
      } else {
        sched_yield();
      }
    }
  }

 private:
  static constexpr int kSpins = 1000;

  static void relax() {
#if defined(__x86_64__)
    _mm_pause();
#endif
  }

  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
};

struct Range {
  int64_t begin;
  int64_t end;
};

struct Worker {
  int index;
  int count;
  Barrier* barrier;

  void sync() const { barrier->wait(count); }

  Range share(int64_t items) const { return {items * index / count, items * (index + 1) / count}; }
};
