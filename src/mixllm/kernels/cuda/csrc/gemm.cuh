// What a block of gemm.cu and grouped.cu does: its pieces of y = x W^T, from codes to y.
//
// Compiled once for each set of these macros:
//   BM x BN       rows x tokens of a block's tile; WM x WN warps divide it, WK more divide the slots of K
//   STAGES        of the ring in shared memory; a stage is WK slots (schedule.cuh)
//   BLOCKS        resident on one SM
//   WEIGHT_SCALES 0: one scale a row and integers a group (in the unpacking)   1: float16 a group   2: float32
//   TOKEN_SCALES  1: one activation scale a token   0: one for each activation group
// With 0 and 1 the whole sum over K is one exact int32; else int32 lives for a slot and float32 for the tile.
#pragma once
#include "accumulate.cuh"
#include "epilogue.cuh"

constexpr int THREADS = 32 * WM * WN * WK;
constexpr int MI = BM / 16 / WM, NJ = BN / 8 / WN;
static_assert(MI * WM * 16 == BM && NJ * WN * 8 == BN, "warps divide the tile");

// A stage: codes of WK slots | activations of WK slots (an 8-bit slot uses half) | scales
constexpr int W_BYTES = BM * 64, X_BYTES = BN * 128, W_SCALE_BYTES = BM / 16 * (META4 > META8 ? META4 : META8);
constexpr int X_SCALE_BYTES = TOKEN_SCALES ? 0 : BN * 4;
constexpr int X_AT = WK * W_BYTES, W_SCALE_AT = X_AT + WK * X_BYTES, X_SCALE_AT = W_SCALE_AT + WK * W_SCALE_BYTES;
constexpr int STAGE_BYTES = X_SCALE_AT + WK * X_SCALE_BYTES;
constexpr int STAGING_AT = STAGES * STAGE_BYTES;

using Tile = Accumulators<MI, NJ>;
using Plan = Schedule<BM, BN, false>;

// Where the loads are: a piece of work, the next slot of it, and this thread's first 16 bytes there.
//
// Copy number n of a thread is piece n THREADS + thread of a stage. Sizes are powers of two, so its row (token) and
// slot (panel) are a part known at compile time plus the thread's own, and the latter is in the pointers.
struct Loads {
  const u8* codes;
  const i8* x;
  int index = 0, slot, end, row16, rows_left, token, tokens_left, slots;
  bool more, eight;

  __device__ __forceinline__ Loads(const Arguments& p, const Plan& schedule) { enter(p, schedule); }

  __device__ __forceinline__ void enter(const Arguments& p, const Plan& schedule) {
    Segment s;
    more = schedule.piece(index, s);
    rows_left = tokens_left = 0;
    if (!more) return;
    slot = s.begin, end = s.end, row16 = s.row16, slots = s.slots, eight = s.eight;
    const int part = threadIdx.x / 64, row = part % (BM / 16), own_token = threadIdx.x / 4 % BN;
    rows_left = (eight ? p.shape.rows8 : p.shape.rows4) - row16 - row;
    codes = (eight ? p.codes8 : p.codes4) +
            (static_cast<i64>(row16 + row) * slots + slot + part / (BM / 16)) * 1024 + threadIdx.x % 64 * 16;
    token = s.token_block * BN;
    tokens_left = p.shape.tokens - token - own_token;
    x = p.x + static_cast<i64>(token + own_token) * x_pitch(p) +
        (slot * panels() + static_cast<int>(threadIdx.x) / 4 / BN) * 64 + threadIdx.x % 4 * 16;
  }

  __device__ __forceinline__ static int x_pitch(const Arguments& p) { return p.shape.groups * 128; }
  __device__ __forceinline__ int panels() const { return eight ? 1 : 2; }
  __device__ __forceinline__ int count() const { return min(WK, end - slot); }

  __device__ __forceinline__ void step(const Arguments& p, const Plan& schedule) {
    slot += WK, codes += WK * 1024, x += WK * 64 * panels();
    if (slot < end) return;
    ++index;
    enter(p, schedule);
  }

  // Codes and scales of a stage; nothing here depends on earlier kernels.
  __device__ __forceinline__ void load_weights(const Arguments& p, u32 stage) const {
    constexpr int COPIES = (WK * BM * 4 + THREADS - 1) / THREADS, PARTS = THREADS / 64;
    const int own_slot = threadIdx.x / 64 / (BM / 16), pitch = slots * 1024;
#pragma unroll
    for (int n = 0; n < COPIES; ++n) {
      constexpr bool EXACT = WK * BM * 4 % THREADS == 0;
      const int row = n * PARTS % (BM / 16), q = n * PARTS / (BM / 16);
      if ((EXACT || n * THREADS + threadIdx.x < WK * BM * 4) && row < rows_left && (WK == 1 || q + own_slot < count()))
        copy_async(stage + (n * THREADS + threadIdx.x) * 16, codes + (row * pitch + q * 1024));
    }
    constexpr int PIECES = (META4 > META8 ? META4 : META8) / 16;
    static_assert(WK * BM / 16 * PIECES <= THREADS, "one copy a thread");
    const int piece = threadIdx.x % PIECES, row = threadIdx.x / PIECES % (BM / 16), q = threadIdx.x / PIECES / (BM / 16);
    const int bytes = eight ? META8 : META4, valid = (eight ? p.shape.rows8 : p.shape.rows4) - row16;
    if (more && q < WK && q < count() && row < valid && piece * 16 < bytes) {
      const i64 group = static_cast<i64>(row16 + row) * p.shape.groups + ((slot + q) >> (eight ? 1 : 0));
      copy_async(stage + W_SCALE_AT + threadIdx.x * 16, (eight ? p.scales8 : p.scales4) + group * bytes + piece * 16);
    }
  }

  // Activations of the same slots. `put` copies 16 bytes: asynchronously in the main loop, at once in the ramp.
  template <typename Put>
  __device__ __forceinline__ void load_tokens(const Arguments& p, u32 stage, Put put) const {
    constexpr int COPIES = (WK * BN * 8 + THREADS - 1) / THREADS, LINES = THREADS / 4;
    const int own_panel = threadIdx.x / 4 / BN, limit = count() * panels(), pitch = x_pitch(p);
#pragma unroll
    for (int n = 0; n < COPIES; ++n) {
      const int ahead = n * LINES % BN, panel = n * LINES / BN;
      if (panel + own_panel < limit && ahead < tokens_left)
        put(stage + X_AT + (n * THREADS + threadIdx.x) * 16, x + static_cast<i64>(ahead) * pitch + panel * 64);
    }
    if constexpr (!TOKEN_SCALES) {
      static_assert(WK * BN / 4 <= THREADS, "one copy a thread");
      const int q = threadIdx.x / (BN / 4), first = token + threadIdx.x % (BN / 4) * 4;
      const int group = ((slot + q) >> (eight ? 1 : 0)) >> p.x_group_shift;
      if (more && q < WK && q < count() && first < p.shape.tokens)
        put(stage + X_SCALE_AT + threadIdx.x * 16, p.x_scales + static_cast<i64>(group) * p.x_stride + first);
    }
  }
};

// The WK warps that share a tile add up, in the order of their slots.
template <typename Tile>
__device__ __forceinline__ void sum_over_warps(Tile& tile, u8* staging, int wk, int thread) {
  constexpr int MI = BM / 16 / WM, NJ = BN / 8 / WN, SHARERS = 32 * WM * WN;
  Words4* slots = reinterpret_cast<Words4*>(staging);
  if (wk > 0) {
#pragma unroll
    for (int i = 0; i < MI; ++i)
#pragma unroll
      for (int j = 0; j < NJ; ++j) slots[((wk - 1) * MI * NJ + i * NJ + j) * SHARERS + thread] = tile.words(i, j);
  }
  __syncthreads();
  if (wk == 0) {
#pragma unroll
    for (int k = 0; k < WK - 1; ++k)
#pragma unroll
      for (int i = 0; i < MI; ++i)
#pragma unroll
        for (int j = 0; j < NJ; ++j) tile.add(i, j, slots[(k * MI * NJ + i * NJ + j) * SHARERS + thread]);
  }
  // The next tile's sums may be written only when these are read.
  __syncthreads();
}

// A piece is done: its sums go to the tile's owner, or are completed and written.
__device__ __forceinline__ void finish(Tile& tile, const Arguments& p, const Plan& schedule, int index,
                                       u8* staging, int wk, int wm, int wn) {
  constexpr int SHARERS = 32 * WM * WN;
  const int thread = threadIdx.x % SHARERS;
  if constexpr (WK > 1) sum_over_warps(tile, staging, wk, thread);
  const Party block{1, 0, SHARERS, thread, wk == 0, false};
  Segment s;
  schedule.piece(index, s);
  if (s.end < s.slots) return give_partials(tile, p, block);
  const Rows rows(p, s, wm, threadIdx.x % 32);
  if (s.begin > 0) take_partials(tile, p, schedule, s.tile, block);
  if (wk > 0) return;
  const int lane = threadIdx.x % 32, first = s.token_block * BN + wn * NJ * 8;
  const auto token = [&](int j, int e) { return Token(p, first + j * 8 + lane % 4 * 2 + e); };
  write_tile(tile, p, rows, token, first, s.eight, lane, staging + (wm * WN + wn) * WARP_STAGING);
}

__device__ __forceinline__ void multiply_tiles(const Arguments& p) {
  extern __shared__ __align__(128) u8 shared[];
  __shared__ Share share;
  const u32 ring = shared_address(shared);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int wk = warp / (WM * WN), wm = warp % (WM * WN) / WN, wn = warp % WN;
  const Plan schedule{p.shape, share};
  if (threadIdx.x == 0) share = schedule.own_share();
  __syncthreads();

  // The ramp: weights first, since they were there before; then what earlier kernels wrote.
  Loads ahead(p, schedule);
  for (int stage = 0; stage < STAGES - 1; ++stage) {
    if (ahead.more) {
      ahead.load_weights(p, ring + stage * STAGE_BYTES);
      ahead.step(p, schedule);
    }
    copy_commit();
  }
  wait_for_earlier_kernels();
  let_next_kernel_start();
  Loads again(p, schedule);
  for (int stage = 0; stage < STAGES - 1 && again.more; ++stage) {
    again.load_tokens(p, ring + stage * STAGE_BYTES,
                      [](u32 to, const void* from) { store_shared(to, load_l2(from)); });
    again.step(p, schedule);
  }

  Tile tile;
  int stage = 0, fill = STAGES - 1;
  for (int index = 0;; ++index) {
    Segment now;
    if (!schedule.piece(index, now)) break;
    const bool eight = now.eight;
    tile.clear();
    for (int left = now.end - now.begin; left > 0; left -= WK) {
      copy_wait<STAGES - 2>();
      __syncthreads();
      const auto load = [&] {
        ahead.load_weights(p, ring + fill * STAGE_BYTES);
        ahead.load_tokens(p, ring + fill * STAGE_BYTES, copy_async);
        copy_commit();
      };
      if (wk >= left) {
        load();
      } else {
        const u32 from = ring + stage * STAGE_BYTES;
        const u32 w = from + wk * W_BYTES + wm * MI * 1024 + lane * 16;
        const u32 x = from + X_AT + wk * X_BYTES / (eight ? 2 : 1) + wn * NJ * 512 + lane * 16;
        const u32 w_scales = from + W_SCALE_AT + (wk * BM / 16 + wm * MI) * (W_SCALE_BYTES / (BM / 16));
        const u32 x_scales = from + X_SCALE_AT + wk * X_SCALE_BYTES + wn * NJ * 32 + lane % 4 * 8;
        const auto tokens = [&](int panel, int j) { return load_shared(x + panel * (BN * 64) + j * 512); };
        const auto scales = [&](int j, int e) { return __uint_as_float(load_shared_u32(x_scales + j * 32 + e * 4)); };
        if (eight)
          accumulate<true>(tile, w, 1024, w_scales, W_SCALE_BYTES / (BM / 16), tokens, scales, load, lane);
        else
          accumulate<false>(tile, w, 1024, w_scales, W_SCALE_BYTES / (BM / 16), tokens, scales, load, lane);
      }
      if (ahead.more) ahead.step(p, schedule);
      stage = stage + 1 == STAGES ? 0 : stage + 1;
      fill = fill + 1 == STAGES ? 0 : fill + 1;
    }
    finish(tile, p, schedule, index, shared + STAGING_AT, wk, wm, wn);
  }
}
