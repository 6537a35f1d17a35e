// A stand-in for the CUDA driver (libcuda): the device's memory is the host's, and work runs when it is queued.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "device/cuda.h"
#include "registry.h"
#include "threads.h"

#define API extern "C" __attribute__((visibility("default"))) int

namespace {

enum Status { kSuccess = 0, kInvalidValue = 1, kOutOfMemory = 2, kNotFound = 500, kNotSupported = 801 };
using Address = unsigned long long;

constexpr size_t kMemory = 20ull << 30;
std::mutex lock;
std::map<Address, size_t> allocations;
size_t used;
char opaque;  // what handles that are only handed back point to

// Whether a range lies in one allocation.
bool owned(Address at, size_t bytes) {
  auto after = allocations.upper_bound(at);
  if (after == allocations.begin()) return bytes == 0;
  const auto& [begin, length] = *--after;
  return at + bytes <= begin + length;
}

int checked(Address at, size_t bytes) {
  std::lock_guard<std::mutex> guard(lock);
  if (owned(at, bytes)) return kSuccess;
  std::fprintf(stderr, "cuda emulator: %zu bytes at %#llx are not in one allocation\n", bytes, at);
  return kInvalidValue;
}

// Of the device, in tenths: a Hopper, or what SPEEDREAD_EMULATED_CAPABILITY says (80, 86 ..), which then has neither Hopper's kernels nor its
// copy engine.
const int capability = [] {
  const char* text = std::getenv("SPEEDREAD_EMULATED_CAPABILITY");
  return text == nullptr ? 90 : std::atoi(text);
}();
// Those of 8.6 and 8.9 have the least.
int block_shared_bytes() { return (capability >= 90 ? 227 : capability == 80 ? 163 : 99) << 10; }

}  // namespace

std::map<std::string, emulator::Thunk>& emulator::kernels() {
  static std::map<std::string, Thunk> all;
  return all;
}

API cuInit(unsigned) { return kSuccess; }
API cuDriverGetVersion(int* version) { return *version = 13000, kSuccess; }
API cuDeviceGetCount(int* count) { return *count = 1, kSuccess; }
API cuDeviceGet(int* device, int ordinal) { return *device = ordinal, ordinal == 0 ? kSuccess : 101; }
API cuDeviceGetName(char* name, int size, int) { return std::snprintf(name, size, "CUDA emulator"), kSuccess; }
API cuDeviceGetAttribute(int* value, int attribute, int) {
  switch (attribute) {
    case 75: *value = capability / 10; break;
    case 76: *value = capability % 10; break;
    case 16: *value = 4; break;   // multiprocessors
    case 115: *value = 1; break;  // memory pools
    default: *value = 0;
  }
  return kSuccess;
}
API cuDevicePrimaryCtxRetain(void** context, int) { return *context = &opaque, kSuccess; }
API cuDevicePrimaryCtxRelease_v2(int) { return kSuccess; }
API cuCtxSetCurrent(void*) { return kSuccess; }
API cuCtxGetCurrent(void** context) { return *context = &opaque, kSuccess; }
API cuCtxSynchronize() { return kSuccess; }
API cuDeviceGetDefaultMemPool(void** pool, int) { return *pool = &opaque, kSuccess; }
API cuMemPoolSetAttribute(void*, int, void*) { return kSuccess; }
API cuMemPoolTrimTo(void*, size_t) { return kSuccess; }
API cuMemGetInfo_v2(size_t* available, size_t* total) {
  std::lock_guard<std::mutex> guard(lock);
  *total = kMemory;
  *available = kMemory - used;
  return kSuccess;
}

API cuStreamCreate(void** stream, unsigned) { return *stream = std::malloc(1), kSuccess; }
API cuStreamDestroy_v2(void* stream) { return std::free(stream), kSuccess; }
API cuStreamSynchronize(void*) { return kSuccess; }
API cuStreamWaitEvent(void*, void*, unsigned) { return kSuccess; }

using Clock = std::chrono::steady_clock;
API cuEventCreate(void** event, unsigned) { return *event = new Clock::time_point(), kSuccess; }
API cuEventDestroy_v2(void* event) { return delete static_cast<Clock::time_point*>(event), kSuccess; }
API cuEventRecord(void* event, void*) { return *static_cast<Clock::time_point*>(event) = Clock::now(), kSuccess; }
API cuEventQuery(void*) { return kSuccess; }
API cuEventSynchronize(void*) { return kSuccess; }
API cuEventElapsedTime_v2(float* milliseconds, void* from, void* to) {
  const auto spent = *static_cast<Clock::time_point*>(to) - *static_cast<Clock::time_point*>(from);
  return *milliseconds = std::chrono::duration<float, std::milli>(spent).count(), kSuccess;
}
API cuEventElapsedTime(float* milliseconds, void* from, void* to) { return cuEventElapsedTime_v2(milliseconds, from, to); }

API cuMemAllocAsync(Address* at, size_t bytes, void*) {
  std::lock_guard<std::mutex> guard(lock);
  void* const memory = bytes <= kMemory - used ? aligned_alloc(256, (bytes + 255) / 256 * 256) : nullptr;
  if (!memory) return kOutOfMemory;
  std::memset(memory, 0xff, bytes);  // not a number in every type: what is used before it is written shows
  *at = reinterpret_cast<Address>(memory);
  allocations[*at] = bytes;
  used += bytes;
  return kSuccess;
}
API cuMemFreeAsync(Address at, void*) {
  std::lock_guard<std::mutex> guard(lock);
  const auto found = allocations.find(at);
  if (found == allocations.end()) return kInvalidValue;
  used -= found->second;
  allocations.erase(found);
  std::free(reinterpret_cast<void*>(at));
  return kSuccess;
}
API cuMemHostAlloc(void** at, size_t bytes, unsigned) { return (*at = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096)) ? kSuccess : kOutOfMemory; }
API cuMemFreeHost(void* at) { return std::free(at), kSuccess; }
API cuMemcpyHtoDAsync_v2(Address to, const void* from, size_t bytes, void*) {
  if (const int status = checked(to, bytes)) return status;
  return std::memcpy(reinterpret_cast<void*>(to), from, bytes), kSuccess;
}
API cuMemcpyDtoHAsync_v2(void* to, Address from, size_t bytes, void*) {
  if (const int status = checked(from, bytes)) return status;
  return std::memcpy(to, reinterpret_cast<void*>(from), bytes), kSuccess;
}
API cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, void*) {
  if (const int status = checked(to, bytes) ?: checked(from, bytes)) return status;
  return std::memmove(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes), kSuccess;
}
API cuMemsetD8Async(Address to, unsigned char byte, size_t bytes, void*) {
  if (const int status = checked(to, bytes)) return status;
  return std::memset(reinterpret_cast<void*>(to), byte, bytes), kSuccess;
}

API cuModuleLoadData(void** module, const void*) { return *module = &opaque, kSuccess; }
API cuModuleUnload(void*) { return kSuccess; }
API cuModuleGetFunction(void** function, void*, const char* name) {
  if (capability != 90 && std::strncmp(name, "sm90_", 5) == 0) return kNotFound;
  const auto found = emulator::kernels().find(name);
  if (found == emulator::kernels().end()) return kNotFound;
  return *function = &found->second, kSuccess;
}
API cuFuncSetAttribute(void*, int attribute, int value) {
  return attribute == 8 && value > block_shared_bytes() ? kInvalidValue : kSuccess;  // dynamic shared memory of a thread block
}
API cuGetErrorName(int status, const char** name) {
  *name = status == kOutOfMemory ? "CUDA_ERROR_OUT_OF_MEMORY" : status == kInvalidValue ? "CUDA_ERROR_INVALID_VALUE" : status == kNotSupported ? "CUDA_ERROR_NOT_SUPPORTED" : "CUDA_ERROR_UNKNOWN";
  return kSuccess;
}
API cuGetErrorString(int, const char** text) { return *text = "says the emulator", kSuccess; }

struct LaunchConfig {
  unsigned grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes;
  void* stream;
  void* attributes;
  unsigned attribute_count;
};
API cuLaunchKernelEx(const LaunchConfig* config, void* function, void** parameters, void**) {
  std::lock_guard<std::mutex> guard(lock);
  const auto& c = *config;
  if (!c.grid_x || !c.grid_y || !c.grid_z || !c.block_x || c.block_y != 1 || c.block_z != 1 || c.block_x > 1024 || c.grid_x > 0x7fffffff ||
      static_cast<int>(c.shared_bytes) > block_shared_bytes() || c.grid_y > 65535 || c.grid_z > 65535)
    return kInvalidValue;
  gridDim = {c.grid_x, c.grid_y, c.grid_z};
  blockDim = {c.block_x, 1, 1};
  for (unsigned z = 0; z < c.grid_z; z++)
    for (unsigned y = 0; y < c.grid_y; y++)
      for (unsigned x = 0; x < c.grid_x; x++) {
        blockIdx = {x, y, z};
        emulator::run_block(*static_cast<emulator::Thunk*>(function), parameters, c.shared_bytes);
      }
  return kSuccess;
}

API cuTensorMapEncodeTiled(CUtensorMap* map, int type, unsigned rank, void* address, const uint64_t* dims, const uint64_t* strides,
                           const unsigned* box, const unsigned*, int, int swizzle, int, int) {
  if (capability < 90) return kNotSupported;
  constexpr int kFloat16 = 6, kBfloat16 = 9, kSwizzle128 = 3;
  if (rank != 3 || (type != kFloat16 && type != kBfloat16) || swizzle != kSwizzle128 || reinterpret_cast<uint64_t>(address) % 16 || strides[0] % 16 ||
      strides[1] % 16 || box[1] > 256 || dims[1] > 0xffffffff)
    return kInvalidValue;
  std::memset(map, 0, sizeof *map);
  map->address = reinterpret_cast<uint64_t>(address);
  for (int i = 0; i < 3; i++) map->dims[i] = dims[i], map->box[i] = box[i];
  for (int i = 0; i < 2; i++) map->strides[i] = strides[i];
  map->element = 2;
  return kSuccess;
}
