// The threads of a block: one fiber each, on one thread of the host, run in turn until all wait or are done.
#pragma once
#include <cstddef>
#include <cstdint>
#include <deque>
#include <utility>
#include <vector>

struct uint3 { uint32_t x, y, z; };
extern uint3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

constexpr size_t kSlotBytes = 64;

// Ends the program: the kernel did something that the device would not do.
[[noreturn]] void fail(const char* what);

// Lets others run until `ready` says yes. `what` is what it waits for, for the report of a deadlock.
struct Condition {
  bool (*holds)(const void*);
  const void* of;
  const char* what;
};
void wait(const Condition& condition);
template <class Ready>
void wait_until(const Ready& ready, const char* what) {
  if (ready()) return;
  wait({[](const void* of) { return (*static_cast<const Ready*>(of))(); }, &ready, what});
}

inline int lane() { return static_cast<int>(threadIdx.x % 32); }
int block_threads();
// One of the block's sixteen barriers: `threads` arrive, and wait for each other.
void block_barrier(int id, int threads);
// All lanes of `mask` in the calling warp.
void warp_barrier(uint32_t mask);
// Where a lane of the calling warp lays down what the others are to see.
void* warp_slot(int lane);

// The block's dynamic shared memory, and its addresses there.
uint8_t* dynamic_shared();
uint32_t shared_address(const void* p);
void* shared_pointer(uint32_t address);

// The asynchronous copies of the calling thread, in groups.
class Copies {
 public:
  void add(uint32_t to, const void* from) { open_.push_back({to, from}); }
  void commit() {
    groups_.push_back(std::move(open_));
    open_.clear();
  }
  // Carries out all but the newest `pending` groups.
  void wait(size_t pending);
  void forget() { open_.clear(), groups_.clear(); }

 private:
  struct Copy {
    uint32_t to;
    const void* from;  // null: zeros
  };
  std::vector<Copy> open_;
  std::deque<std::vector<Copy>> groups_;
};
Copies& copies();

}  // namespace emulator
