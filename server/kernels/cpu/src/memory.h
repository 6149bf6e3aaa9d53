// Zeroed, cache-line-aligned memory that grows and is never shrunk.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

constexpr int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// A hint only: whole small pages inside the range, where the system knows huge ones.
inline void prefer_huge_pages(void* memory, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
  const uintptr_t page = 4096;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + static_cast<uintptr_t>(bytes)) / page * page;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)memory;
  (void)bytes;
#endif
}

template <class T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { free(data_); }

  T* data() const { return data_; }

  // Makes room for count elements, all zero. Keeps nothing of a smaller buffer's content.
  void reserve(int64_t count) {
    if (count <= capacity_) return;
    const int64_t bytes = round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    void* memory = aligned_alloc(64, static_cast<size_t>(bytes));
    if (memory == nullptr) throw std::bad_alloc();
    memset(memory, 0, static_cast<size_t>(bytes));
    free(data_);
    data_ = static_cast<T*>(memory);
    capacity_ = count;
  }

 private:
  T* data_ = nullptr;
  int64_t capacity_ = 0;
};

// Address space for the KV cache: the system hands out zeroed pages as blocks are first written.
template <class T>
class Reservation {
 public:
  explicit Reservation(int64_t count) : bytes_(static_cast<size_t>(round_up(count * static_cast<int64_t>(sizeof(T)), 4096))) {
    if (bytes_ == 0) bytes_ = 4096;
    void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    prefer_huge_pages(memory, static_cast<int64_t>(bytes_));
    data_ = static_cast<T*>(memory);
  }
  Reservation(const Reservation&) = delete;
  Reservation& operator=(const Reservation&) = delete;
  ~Reservation() { munmap(data_, bytes_); }

  T* data() const { return data_; }

 private:
  T* data_;
  size_t bytes_;
};
