// Chooses the windows and columns of every head: a thread block a head, and one that writes the list of all windows.
#include "index.cuh"
#include "top.cuh"

constexpr int kChoosers = 1024;
constexpr int kForcedColumns = 30;
constexpr int kForcedDiagonals = 100;
constexpr int kLastQueries = 64;
constexpr int kForcedWindows = 2;  // hold the forced diagonals

union ChooseShared {
  TopShared top;
  struct {
    uint64_t warps[2][32];
    uint64_t near[12];
  } greedy;
  struct {
    int contiguous;
    unsigned long long cost;
  } cost;
};

// The windows of most gain, greedily, among those that overlap no chosen one; ascending.
__device__ int choose_windows(ChooseShared& s, const IndexParams& p, const HeadTask& head) {
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  // Windows chosen one by one leave gaps too narrow for another: a budget for everything is spent on everything.
  const int all = 1 + (p.len - 1 + kTileKeys - 1) / kTileKeys;
  if (head.slash >= all) {
    for (int i = thread; i < all; i += kChoosers) p.offsets[head.windows + i] = i * kTileKeys;
    __syncthreads();
    return all;
  }
  float* const gains = p.gains + head.slot * p.pitch;
  uint64_t* const best = p.best + head.slot * p.runs;
  int32_t* const windows = p.offsets + head.windows;
  int32_t* const unsorted = windows + head.window_room;

  auto own_best = [&] {
    uint64_t most = 0;
    for (int64_t run = thread; run < p.runs; run += kChoosers) most = best[run] > most ? best[run] : most;
    return most;
  };
  uint64_t own = own_best();
  int count = p.len > 1 ? kForcedWindows : 1;
  if (thread < count) unsorted[thread] = thread * kTileKeys;
  for (int turn = 0; count < head.slash; turn ^= 1) {
    const uint64_t of_warp = warp_max(own);
    if (lane == 0) s.greedy.warps[turn][warp] = of_warp;
    __syncthreads();
    const uint64_t most = warp_max(s.greedy.warps[turn][lane]);
    if (most == 0) break;
    const int window = offset_of(most);
    if (thread == 0) unsorted[count] = window;
    count++;
    // Offsets that overlap it lie in its own run and the two beside it.
    const int64_t first_run = window / kTileKeys - 1;
    if (warp < 12) {
      const int64_t offset = first_run * kTileKeys + thread;
      float gain = 0.f;
      if (offset >= 0 && offset < p.len) {
        gain = gains[offset];
        if (gain > 0.f && abs(static_cast<int>(offset) - window) < kTileKeys) gains[offset] = gain = 0.f;
      }
      const uint64_t near = warp_max(gain_at(gain, static_cast<int>(offset)));
      if (lane == 0) s.greedy.near[warp] = near;
    }
    __syncthreads();
    for (int i = 0; i < 3; i++) {
      const int64_t run = first_run + i;
      if (run < 0 || run >= p.runs || run % kChoosers != thread) continue;
      uint64_t most_near = 0;
      for (int w = 4 * i; w < 4 * i + 4; w++) most_near = s.greedy.near[w] > most_near ? s.greedy.near[w] : most_near;
      best[run] = most_near;
      own = own_best();
    }
  }
  __syncthreads();
  for (int i = thread; i < count; i += kChoosers) {
    const int window = unsorted[i];
    int rank = 0;
    for (int j = 0; j < count; j++) rank += unsorted[j] < window;
    windows[rank] = window;
  }
  __syncthreads();
  return count;
}

// Fewest windows that hold every diagonal of an ascending list, in its place: what `cover` in src/index.rs does. A warp's work; all threads
// return the count.
__device__ int cover(ChooseShared& s, int32_t* list, int diagonals) {
  __shared__ int count;
  if (threadIdx.x < 32) {
    const int lane = threadIdx.x;
    int covered = -kTileKeys, windows = 0;
    for (int base = 0; base < diagonals; base += 32) {
      const int diagonal = base + lane < diagonals ? list[base + lane] : -kTileKeys;
      __syncwarp();
      while (const uint32_t missing = __ballot_sync(~0u, diagonal > covered)) {
        // Right edge where the first missing key is: no window overlaps another.
        covered = max(__shfl_sync(~0u, diagonal, __ffs(missing) - 1), covered + kTileKeys);
        if (lane == 0) list[windows] = covered;
        windows++;
      }
    }
    if (lane == 0) count = windows;
  }
  __syncthreads();
  return count;
}

// Takes from the columns' mass what the windows hold for the last queries.
__device__ void leave_to_windows(const IndexParams& p, const HeadTask& head, int windows) {
  float* const columns = p.columns + head.slot * p.pitch;
  const int first_query = p.len - min(kLastQueries, p.rows);
  for (int64_t i = threadIdx.x; i < static_cast<int64_t>(windows) * kTileKeys; i += kChoosers) {
    const int64_t key = static_cast<int64_t>(first_query) - p.offsets[head.windows + i / kTileKeys] + i % kTileKeys;
    if (key >= 0 && key < p.len) columns[key] = 0.f;
  }
  __syncthreads();
}

// The lines of most mass, the first `forced` before all others, to `to`, ascending; returns how many.
__device__ int choose_most(ChooseShared& s, const float* masses, int len, int count, int forced, bool keep_zero, int32_t* to) {
  extern __shared__ __align__(16) uint8_t candidates[];
  auto key = [forced](int i, float mass) { return i < forced ? 0x7f800000u : order_of_mass(mass); };
  return top_of_many<kChoosers>(s.top, *reinterpret_cast<Candidates*>(candidates), Row<decltype(key)>{masses, key}, len, count, keep_zero,
                                [to](int place, int i) { to[place] = i; });
}

// The first of the head's query tiles whose first row stands at `position` or further.
__device__ __forceinline__ int64_t tile_from(const IndexParams& p, int64_t position) {
  return position <= p.start ? 0 : (position - p.start + kTileQueries - 1) / kTileQueries;
}

// Whether the lists cost no less than dense attention. A column tile counts wherever it may have a column; it may have none there.
__device__ bool costs_dense(ChooseShared& s, const IndexParams& p, const HeadTask& head, int windows, int contiguous, int columns) {
  if (threadIdx.x == 0) s.cost.cost = 0;
  __syncthreads();
  unsigned long long cost = 0;
  auto visits = [&](int64_t first_tile) { return static_cast<unsigned long long>(max(head.dense_from - first_tile, static_cast<int64_t>(0))); };
  for (int i = threadIdx.x; i < windows; i += kChoosers) cost += visits(tile_from(p, static_cast<int64_t>(p.offsets[head.windows + i]) - kTileKeys + 1));
  for (int i = threadIdx.x; i * kTileKeys < columns; i += kChoosers) {
    const int64_t column = p.positions[(static_cast<int64_t>(head.column_tile) + i) * kTileKeys];
    cost += visits(tile_from(p, max(column + 1, (static_cast<int64_t>(contiguous) - 1) * kTileKeys + 1)));
  }
  atomicAdd(&s.cost.cost, cost);
  __syncthreads();
  return s.cost.cost >= static_cast<unsigned long long>(head.dense_tiles);
}

extern "C" __global__ void __launch_bounds__(kChoosers) choose_lines(const __grid_constant__ IndexParams p) {
  __shared__ ChooseShared s;
  if (blockIdx.x == p.head_count) {
    for (int i = threadIdx.x; i < p.dense_list; i += kChoosers) p.offsets[i] = i * kTileKeys;
    return;
  }
  const HeadTask head = p.heads[blockIdx.x];
  HeadState& state = p.states[blockIdx.x];
  if (head.kind == kDense || head.kind == kBlocks || head.kind == kShares) {
    if (threadIdx.x == 0) state = {0, 0, 0, head.kind == kDense, 0};
    return;
  }
  int32_t* const windows = p.offsets + head.windows;
  int32_t* const positions = p.positions + static_cast<int64_t>(head.column_tile) * kTileKeys;
  int window_count, column_count;
  if (head.kind == kLocal) {
    // Diagonals 0 .. slash.
    window_count = 1 + (head.slash - 1 + kTileKeys - 1) / kTileKeys;
    column_count = head.vertical;
    for (int i = threadIdx.x; i < window_count; i += kChoosers) windows[i] = i * kTileKeys;
    for (int i = threadIdx.x; i < column_count; i += kChoosers) positions[i] = i;
    __syncthreads();
  } else {
    const float* const columns = p.columns + head.slot * p.pitch;
    if (head.kind == kTiles) {
      window_count = choose_windows(s, p, head);
      leave_to_windows(p, head, window_count);
      column_count = choose_most(s, columns, p.len, head.vertical, kForcedColumns, false, positions);
    } else {
      const int diagonals = choose_most(s, p.diagonals + head.slot * p.pitch, p.len, head.slash, kForcedDiagonals, true, windows);
      window_count = cover(s, windows, diagonals);
      column_count = choose_most(s, columns, p.len, head.vertical, kForcedColumns, true, positions);
    }
  }
  for (int i = column_count + threadIdx.x; i < head.column_tiles * kTileKeys; i += kChoosers) positions[i] = -1;

  if (threadIdx.x == 0) s.cost.contiguous = window_count;
  __syncthreads();
  for (int i = threadIdx.x; i < window_count; i += kChoosers)
    if (windows[i] != i * kTileKeys) atomicMin(&s.cost.contiguous, i);
  __syncthreads();
  const int contiguous = s.cost.contiguous;
  const bool dense = p.fallback && costs_dense(s, p, head, window_count, contiguous, column_count);
  if (threadIdx.x == 0) state = {window_count, column_count, contiguous, dense, 0};
}
