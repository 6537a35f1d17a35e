#pragma once
#include "cuda_runtime.h"

namespace ptx {

inline float exp2_approx(float x) { return std::exp2(x); }
inline void have_now(float) {}

}  // namespace ptx
