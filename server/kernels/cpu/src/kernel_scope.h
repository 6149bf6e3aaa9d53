// The processor's state that a kernel needs on a thread, from its start to its end.
#pragma once

#include "simd.h"

#if defined(ML_TILES)
#include "tiles.h"

using KernelScope = tiles::Scope;
#else
struct KernelScope {};
#endif
