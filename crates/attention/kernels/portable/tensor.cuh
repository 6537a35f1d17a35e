// Tensors in device memory, as the portable kernels take them.
#pragma once
#include <cstdint>

namespace portable {

// A [rows, heads, dim] tensor; strides are in elements, and addresses and strides multiples of 16 bytes. The mirror of `PortableTensor` in
// `src/cuda/kernels.rs`.
template <typename Element>
struct Tensor {
  Element* data;
  int64_t row_stride, head_stride;
};

}  // namespace portable
