// Tile registers (Intel AMX): eight matrices of up to 16 rows of 64 bytes. c[m][n] += sum over pairs k of
// a[m][2k] b[k][2n] + a[m][2k + 1] b[k][2n + 1] is one instruction, in the order that tile_order.h says.
//
// The instructions where the build has them (ML_AMX), else the same in plain C++ (ML_AMX_EMULATED), so that
// everything built on them can be tested anywhere.
#pragma once

#include <cstdint>

#include "simd.h"
#include "tile_order.h"

namespace tiles {

// Who shaped the registers.
enum class Use : int { kNone, kTwoByTwo, kShrink };

// The shapes of the registers, as the processor reads them.
struct alignas(64) Config {
  uint8_t palette = 1;
  uint8_t start = 0;
  uint8_t reserved[14] = {};
  uint16_t bytes[16] = {};  // of a row
  uint8_t rows[16] = {};

  void shape(int tile, int tile_rows, int row_bytes) {
    rows[tile] = static_cast<uint8_t>(tile_rows);
    bytes[tile] = static_cast<uint16_t>(row_bytes);
  }
};

}  // namespace tiles

#if defined(ML_AMX)
#include "tiles_amx.h"
#else
#include "tiles_emulated.h"
#endif

namespace tiles {

inline thread_local int configured = 0;

// Shapes this thread's registers, unless they are. Costs as much as some ten products.
template <class Shapes>
ML_INLINE void configure(Use use, int variant, Shapes shapes) {
  const int wanted = static_cast<int>(use) << 16 | variant;
  if (configured == wanted) return;
  configured = wanted;
  load_config(shapes(variant));
}

// Registers 0 to 3 hold sums, two rows of two tiles; 4 and 5 the left factors of `rows` rows, up to 32; 6 and 7 the
// right ones.
inline Config two_by_two(int rows) {
  Config config;
  const int first = rows < 16 ? rows : 16;
  const int second = rows > 16 ? rows - 16 : 1;
  const int heights[8] = {first, first, second, second, first, second, 16, 16};
  for (int t = 0; t < 8; t++) config.shape(t, heights[t], 64);
  return config;
}

// A kernel's use of tiles on one thread. Others on the same thread shape the registers as they like before and after
// (PyTorch's kernels do); a thread that waits holds none, which would have to be saved at every change of threads.
class Scope {
 public:
  Scope() = default;
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;
  ~Scope() {
    if (configured != 0) release();
    configured = 0;
  }

 private:
  FlushDenormals flush_;  // what is computed in vectors instead has to come out the same
};

}  // namespace tiles
