#pragma once
#include "cuda_runtime.h"

namespace ptx {

inline int thread() { return static_cast<int>(threadIdx.x); }

}  // namespace ptx
