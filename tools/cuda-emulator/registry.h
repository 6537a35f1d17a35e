// The kernels that the stand-in driver knows, by name.
#pragma once
#include <map>
#include <string>
#include <type_traits>
#include <utility>

#include "threads.h"

namespace emulator {

std::map<std::string, Thunk>& kernels();

template <class... Parameter, size_t... I>
void call(void (*kernel)(Parameter...), void** parameters, std::index_sequence<I...>) {
  kernel(*static_cast<std::remove_cv_t<std::remove_reference_t<Parameter>>*>(parameters[I])...);
}
template <class... Parameter>
void call(void (*kernel)(Parameter...), void** parameters) {
  call(kernel, parameters, std::index_sequence_for<Parameter...>{});
}

}  // namespace emulator

#define EMULATOR_KERNEL(NAME) \
  static const bool registered_##NAME = (emulator::kernels()[#NAME] = [](void** parameters) { emulator::call(NAME, parameters); }, true);
