#include "threads.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "stack.h"

uint3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {
namespace {

constexpr int kMaxThreads = 1024;
constexpr size_t kStackBytes = 256 << 10;
// As much as a matrix descriptor can name, which is more than a block can have.
constexpr size_t kSharedRange = 256 << 10;

struct Fiber {
  Stack stack;
  char* memory;
  bool done;
  Condition waits_for;
  Copies copies;
};

struct Barrier {
  int arrived;
  unsigned generation;
};

struct WarpBarrier {
  uint32_t arrived;
  unsigned generation;
};

Fiber fibers[kMaxThreads];
Stack scheduler;
int current;
Barrier barriers[16];
WarpBarrier warps[kMaxThreads / 32];
alignas(64) uint8_t slots[kMaxThreads][kSlotBytes];
Thunk kernel;
void** parameters;

// Named by kernels only through `shared_address`, whose numbers start at zero as the device's nearly do.
uint8_t* shared() {
  static uint8_t* const range = [] {
    void* const p = aligned_alloc(kSharedRange, kSharedRange);
    if (!p) fail("no memory for a block's shared memory");
    return static_cast<uint8_t*>(p);
  }();
  return range;
}

uint32_t random() {
  static uint64_t state = 1;
  state = state * 6364136223846793005 + 1442695040888963407;
  return static_cast<uint32_t>(state >> 32);
}

void enter(int thread) {
  current = thread;
  threadIdx = {static_cast<uint32_t>(thread), 0, 0};
}

void run_thread() {
  kernel(parameters);
  fibers[current].done = true;
  switch_stack(fibers[current].stack, scheduler);
  abort();
}

void report_deadlock() {
  std::fprintf(stderr, "cuda emulator: all threads of block %u, %u, %u wait:\n", blockIdx.x, blockIdx.y, blockIdx.z);
  for (int first = 0, i = 1; i <= static_cast<int>(blockDim.x); i++) {
    auto what = [](int t) { return fibers[t].done ? "nothing: done" : fibers[t].waits_for.what; };
    if (i < static_cast<int>(blockDim.x) && !std::strcmp(what(i), what(first))) continue;
    std::fprintf(stderr, "  threads %d to %d: %s\n", first, i - 1, what(first));
    first = i;
  }
  fail("deadlock");
}

}  // namespace

void fail(const char* what) {
  std::fprintf(stderr, "cuda emulator: %s (block %u, %u, %u, thread %u)\n", what, blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x);
  std::abort();
}

void wait(const Condition& condition) {
  const int own = current;
  fibers[own].waits_for = condition;
  switch_stack(fibers[own].stack, scheduler);
}

int block_threads() { return static_cast<int>(blockDim.x); }

void block_barrier(int id, int threads) {
  if (id < 0 || id > 15) fail("a block has barriers 0 to 15");
  Barrier& barrier = barriers[id];
  const unsigned generation = barrier.generation;
  if (++barrier.arrived == threads) {
    barrier.arrived = 0;
    barrier.generation++;
  }
  wait_until([&] { return barrier.generation != generation; }, id == 0 ? "__syncthreads" : "a named barrier");
}

void warp_barrier(uint32_t mask) {
  WarpBarrier& barrier = warps[threadIdx.x / 32];
  const unsigned generation = barrier.generation;
  barrier.arrived |= 1u << lane();
  if (barrier.arrived == mask) {
    barrier.arrived = 0;
    barrier.generation++;
  }
  wait_until([&] { return barrier.generation != generation; }, "the other lanes of its warp");
}

Copies& copies() { return fibers[current].copies; }
void Copies::wait(size_t pending) {
  for (; groups_.size() > pending; groups_.pop_front())
    for (const Copy& copy : groups_.front()) {
      if (copy.from) std::memcpy(shared_pointer(copy.to), copy.from, 16);
      else std::memset(shared_pointer(copy.to), 0, 16);
    }
}

void* warp_slot(int lane) { return slots[threadIdx.x / 32 * 32 + lane]; }

uint8_t* dynamic_shared() { return shared(); }
uint32_t shared_address(const void* p) {
  const auto offset = static_cast<const uint8_t*>(p) - shared();
  // Variables that are declared, not passed, lie elsewhere; kernels only hand them to functions that take pointers.
  if (offset < 0 || offset >= static_cast<ptrdiff_t>(kSharedRange)) fail("the address of what is not in dynamic shared memory");
  return static_cast<uint32_t>(offset);
}
void* shared_pointer(uint32_t address) {
  if (address >= kSharedRange) fail("an address outside shared memory");
  return shared() + address;
}

void run_block(Thunk thunk, void** with, size_t shared_bytes) {
  const int count = static_cast<int>(blockDim.x);
  if (count > kMaxThreads || shared_bytes > 227 << 10) fail("a block larger than the device runs");
  std::memset(shared(), 0xff, kSharedRange);  // not a number in every type
  std::memset(barriers, 0, sizeof barriers);
  std::memset(warps, 0, sizeof warps);
  kernel = thunk;
  parameters = with;
  for (int i = 0; i < count; i++) {
    Fiber& fiber = fibers[i];
    if (!fiber.memory) fiber.memory = static_cast<char*>(std::malloc(kStackBytes));
    fiber.done = false;
    fiber.waits_for = {};
    fiber.copies.forget();
    make_stack(fiber.stack, fiber.memory, kStackBytes, run_thread);
  }
  for (int left = count; left > 0;) {
    bool ran = false;
    // Another order every time: nothing may depend on it.
    const uint32_t order = random();
    const int first = static_cast<int>(order % count), step = order >> 31 ? 1 : count - 1;
    for (int turn = 0; turn < count; turn++) {
      const int i = static_cast<int>((first + static_cast<int64_t>(turn) * step) % count);
      Fiber& fiber = fibers[i];
      if (fiber.done || (fiber.waits_for.holds && !fiber.waits_for.holds(fiber.waits_for.of))) continue;
      fiber.waits_for = {};
      enter(i);
      switch_stack(scheduler, fiber.stack);
      ran = true;
      if (fiber.done) left--;
    }
    if (!ran) report_deadlock();
  }
}

}  // namespace emulator
