// Switching between stacks.
#pragma once
#include <cstddef>

namespace emulator {

#if defined(__x86_64__)

// A stack that is left: where its saved registers lie.
using Stack = void*;

// Leaves the current stack, of which `own` then tells, for `other`.
extern "C" void emulator_switch(Stack* own, Stack other);
asm(R"(
.text
.hidden emulator_switch
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");

inline void switch_stack(Stack& own, Stack& other) { emulator_switch(&own, other); }
inline void make_stack(Stack& stack, char* memory, size_t bytes, void (*entry)()) {
  // Aligned as after a call, with `entry` as the address to return to and zeros for the registers.
  void** top = reinterpret_cast<void**>(reinterpret_cast<size_t>(memory + bytes) & ~size_t{63}) - 1;
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; i++) *--top = nullptr;
  stack = top;
}

#else

}  // namespace emulator
#include <ucontext.h>
namespace emulator {

using Stack = ucontext_t;

inline void switch_stack(Stack& own, Stack& other) { swapcontext(&own, &other); }
inline void make_stack(Stack& stack, char* memory, size_t bytes, void (*entry)()) {
  getcontext(&stack);
  stack.uc_stack.ss_sp = memory;
  stack.uc_stack.ss_size = bytes;
  stack.uc_link = nullptr;
  makecontext(&stack, entry, 0);
}

#endif

}  // namespace emulator
