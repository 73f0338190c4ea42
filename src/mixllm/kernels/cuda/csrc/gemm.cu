// y[t, n] = sum over k of x[t, k] w[n, k] for rows of 4 and 8 bits and int8 activations, in one launch.
//
// Compiled once for each set of these macros:
//   BM x BN       rows x tokens of a block's tile; WM x WN warps divide it, WK more divide the slots of K
//   STAGES        of the ring in shared memory; a stage is WK slots (schedule.cuh)
//   BLOCKS        resident on one SM
//   WEIGHT_SCALES 0: one scale a row and integers a group (in the unpacking)   1: float16 a group   2: float32
//   TOKEN_SCALES  1: one activation scale a token   0: one for each activation group
// With 0 and 1 the whole sum over K is one exact int32; else int32 lives for a slot and float32 for the tile.
#include "accumulate.cuh"
#include "epilogue.cuh"

struct Arguments {
  const u8* codes8;        // [rows8 / 16][2 groups][1024]
  const u8* codes4;        // [rows4 / 16][groups][1024]
  const u8* scales8;       // [rows8 / 16][groups][META8]; see accumulate.cuh
  const u8* scales4;       // [rows4 / 16][groups][META4]
  const i8* x;             // [tokens][128 groups]
  const float* x_scales;   // [activation groups][x_stride]
  int* partials;           // [blocks][BM * BN]
  int* flags;              // [blocks], 0 before and after
  Outputs out;
  Shape shape;
  int x_stride;
  int x_group_shift;       // weight groups in an activation group, log2
};

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

// Codes and scales of slots [slot, slot + count) of a tile; nothing here depends on earlier kernels.
__device__ __forceinline__ void load_weights(const Arguments& p, u32 stage, const Segment& s, int slot, int count) {
  const u8* codes = s.eight ? p.codes8 : p.codes4;
  const int left = (s.eight ? p.shape.rows8 : p.shape.rows4) - s.row16;
#pragma unroll
  for (int first = 0; first < WK * BM * 4; first += THREADS) {
    const int i = first + threadIdx.x, q = i / (BM * 4), row = i / 64 % (BM / 16);
    if (i < WK * BM * 4 && q < count && row < left)
      copy_async(stage + i * 16, codes + (static_cast<i64>(s.row16 + row) * s.slots + slot + q) * 1024 + i % 64 * 16);
  }
  const int bytes = s.eight ? META8 : META4;
  const u8* scales = s.eight ? p.scales8 : p.scales4;
  constexpr int PIECES = (META4 > META8 ? META4 : META8) / 16;
#pragma unroll
  for (int first = 0; first < WK * BM / 16 * PIECES; first += THREADS) {
    const int i = first + threadIdx.x, piece = i % PIECES, row = i / PIECES % (BM / 16), q = i / PIECES / (BM / 16);
    const int group = (slot + q) >> (s.eight ? 1 : 0);
    if (q < WK && q < count && row < left && piece * 16 < bytes)
      copy_async(stage + W_SCALE_AT + i * 16,
                 scales + (static_cast<i64>(s.row16 + row) * p.shape.groups + group) * bytes + piece * 16);
  }
}

// Activations of the same slots. `put` copies 16 bytes: asynchronously in the main loop, at once in the ramp.
template <typename Put>
__device__ __forceinline__ void load_tokens(const Arguments& p, u32 stage, const Segment& s, int slot, int count,
                                            Put put) {
  const int panels = s.eight ? 1 : 2, left = p.shape.tokens - s.token_block * BN;
  const i64 pitch = static_cast<i64>(p.shape.groups) * 128;
  const i8* x = p.x + s.token_block * BN * pitch + static_cast<i64>(slot) * panels * 64;
#pragma unroll
  for (int first = 0; first < WK * 2 * BN * 4; first += THREADS) {
    const int i = first + threadIdx.x, piece = i % 4, token = i / 4 % BN, panel = i / (4 * BN);
    if (panel < count * panels && token < left)
      put(stage + X_AT + i * 16, x + token * pitch + panel * 64 + piece * 16);
  }
  if constexpr (!TOKEN_SCALES) {
#pragma unroll
    for (int first = 0; first < WK * BN / 4; first += THREADS) {
      const int i = first + threadIdx.x, q = i / (BN / 4), token = s.token_block * BN + i % (BN / 4) * 4;
      const int group = ((slot + q) >> (s.eight ? 1 : 0)) >> p.x_group_shift;
      if (q < WK && q < count && token < p.x_stride)
        put(stage + X_SCALE_AT + i * 16, p.x_scales + static_cast<i64>(group) * p.x_stride + token);
    }
  }
}

struct Cursor {
  Segment segment;
  int index = 0, slot = 0;
  bool more;

  __device__ __forceinline__ explicit Cursor(const Schedule<BM, BN>& schedule) { enter(schedule); }
  __device__ __forceinline__ int count() const { return min(WK, segment.end - slot); }
  __device__ __forceinline__ void enter(const Schedule<BM, BN>& schedule) {
    more = schedule.piece(index, segment);
    slot = segment.begin;
  }
  // To the next stage; true when that leaves the segment.
  __device__ __forceinline__ bool step() { return (slot += count()) == segment.end; }
  __device__ __forceinline__ void next(const Schedule<BM, BN>& schedule) {
    ++index;
    enter(schedule);
  }
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) mixed_gemm(const __grid_constant__ Arguments p) {
  extern __shared__ __align__(128) u8 shared[];
  const u32 ring = shared_address(shared);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int wk = warp / (WM * WN), wm = warp % (WM * WN) / WN, wn = warp % WN;
  const Schedule<BM, BN> schedule(p.shape);

  // The ramp: weights first, since they were there before; then what earlier kernels wrote.
  Cursor ahead(schedule);
  for (int stage = 0; stage < STAGES - 1; ++stage) {
    if (ahead.more) {
      load_weights(p, ring + stage * STAGE_BYTES, ahead.segment, ahead.slot, ahead.count());
      if (ahead.step()) ahead.next(schedule);
    }
    copy_commit();
  }
  wait_for_earlier_kernels();
  let_next_kernel_start();
  {
    Cursor again(schedule);
    for (int stage = 0; stage < STAGES - 1 && again.more; ++stage) {
      load_tokens(p, ring + stage * STAGE_BYTES, again.segment, again.slot, again.count(),
                  [](u32 to, const void* from) { store_shared(to, load_l2(from)); });
      if (again.step()) again.next(schedule);
    }
  }

  Tile tile;
  tile.clear();
  int stage = 0, fill = STAGES - 1;
  for (Cursor now(schedule); now.more;) {
    copy_wait<STAGES - 2>();
    __syncthreads();
    if (ahead.more) {
      const u32 to = ring + fill * STAGE_BYTES;
      load_weights(p, to, ahead.segment, ahead.slot, ahead.count());
      load_tokens(p, to, ahead.segment, ahead.slot, ahead.count(), copy_async);
      if (ahead.step()) ahead.next(schedule);
    }
    copy_commit();

    if (wk < now.count()) {
      const u32 from = ring + stage * STAGE_BYTES;
      const u32 w = from + wk * W_BYTES + wm * MI * 1024 + lane * 16;
      const u32 x = from + X_AT + wk * X_BYTES / (now.segment.eight ? 2 : 1) + wn * NJ * 512 + lane * 16;
      const u32 w_scales = from + W_SCALE_AT + (wk * BM / 16 + wm * MI) * (W_SCALE_BYTES / (BM / 16));
      const u32 x_scales = from + X_SCALE_AT + wk * X_SCALE_BYTES + wn * NJ * 32;
      if (now.segment.eight)
        accumulate<true>(tile, w, x, w_scales, x_scales, lane);
      else
        accumulate<false>(tile, w, x, w_scales, x_scales, lane);
    }
    stage = stage + 1 == STAGES ? 0 : stage + 1;
    fill = fill + 1 == STAGES ? 0 : fill + 1;

    if (!now.step()) continue;
    const Segment& s = now.segment;
    if constexpr (WK > 1) sum_over_warps(tile, shared + STAGING_AT, wk, threadIdx.x % (32 * WM * WN));
    if (s.end < s.slots) {
      give_partials(tile, p.partials + static_cast<i64>(blockIdx.x) * BM * BN, p.flags + blockIdx.x, wk);
    } else {
      if (s.begin > 0) take_partials(tile, schedule, s.tile, p.partials, p.flags, wk);
      if (wk == 0) write_tile(tile, p.out, p.x_scales, p.shape, s, wm, wn, lane, shared + STAGING_AT + warp * WARP_STAGING);
    }
    tile.clear();
    now.next(schedule);
  }
}
