#pragma once

namespace ptx {

template <int Count>
inline void registers_give() {}
template <int Count>
inline void registers_take() {}

}  // namespace ptx
