// The product of gemm.cu for few tokens, where only the reading of weights counts.
//
// Compiled once for each set of these macros: BN tokens, BM = 16 WM rows with one warp to 16 rows (WN = WK = 1),
// STAGES, BLOCKS, WEIGHT_SCALES and TOKEN_SCALES as in gemm.cu.
//
// Each warp is on its own: it streams the slots of its 16 rows (1,024 bytes each, one after the other in memory)
// through a ring of shared memory that no other warp touches, so nothing waits at a barrier. The warps of a block
// are at about the same inputs, whose few activations come through L1 straight into registers, a slot ahead.
#include "accumulate.cuh"
#include "epilogue.cuh"

constexpr int THREADS = 32 * WM, NJ = BN / 8;
constexpr int META = META4 > META8 ? META4 : META8;
constexpr int STAGE_BYTES = 1024 + META, RING_BYTES = STAGES * STAGE_BYTES;
static_assert(BM == 16 * WM && WN == 1 && WK == 1, "a warp to 16 rows");

using Tile = Accumulators<1, NJ>;
using Plan = Schedule<BM, BN>;

// A place in this block's work: slot `slot` of piece `index`.
struct Place {
  int index = 0, slot, end, row16;
  bool more, eight;

  __device__ __forceinline__ void enter(const Plan& plan) {
    Segment s;
    more = plan.piece(index, s);
    slot = s.begin, end = s.end, row16 = s.row16, eight = s.eight;
  }
  __device__ __forceinline__ explicit Place(const Plan& plan) { enter(plan); }
  // True when that left the piece.
  __device__ __forceinline__ bool step(const Plan& plan) {
    if (++slot < end) return false;
    ++index;
    enter(plan);
    return true;
  }
};

// The weights' way into the ring: two or three copies a lane and slot from pointers that only move on.
struct Stream {
  Place at;
  const u8 *codes, *scales;
  bool inside;  // this warp has rows in the tile

  __device__ __forceinline__ Stream(const Plan& plan, const Arguments& p, int warp, int lane) : at(plan) {
    aim(p, warp, lane);
  }
  __device__ __forceinline__ void aim(const Arguments& p, int warp, int lane) {
    if (!at.more) return;
    const int row = at.row16 + warp, slots = p.shape.groups * (at.eight ? 2 : 1);
    inside = row < (at.eight ? p.shape.rows8 : p.shape.rows4);
    codes = (at.eight ? p.codes8 : p.codes4) + (static_cast<i64>(row) * slots + at.slot) * 1024 + lane * 16;
    scales = (at.eight ? p.scales8 : p.scales4) +
             (static_cast<i64>(row) * p.shape.groups + (at.eight ? at.slot / 2 : at.slot)) * (at.eight ? META8 : META4) +
             lane * 16;
  }
  __device__ __forceinline__ void load(const Plan& plan, const Arguments& p, u32 stage, int warp, int lane) {
    if (!at.more) return;
    if (inside) {
      copy_async(stage + lane * 16, codes);
      copy_async(stage + lane * 16 + 512, codes + 512);
      if (lane * 16 < (at.eight ? META8 : META4)) copy_async(stage + 1024 + lane * 16, scales);
    }
    codes += 1024;
    if (at.eight)
      scales += at.slot % 2 * META8;
    else
      scales += META4;
    if (at.step(plan)) aim(p, warp, lane);
  }
};

// One slot's activations of a lane.
struct Activations {
  Words4 x[2][NJ];
  float scale[NJ][2];

  __device__ __forceinline__ void load(const Arguments& p, const Place& at, int lane) {
    if (!at.more) return;
    const int k = at.eight ? at.slot * 64 : at.slot * 128;
    const i64 pitch = static_cast<i64>(p.shape.groups) * 128;
#pragma unroll
    for (int j = 0; j < NJ; ++j) {
      const int token = j * 8 + lane / 4;
      if (token >= p.shape.tokens) continue;
      const i8* from = p.x + token * pitch + k + lane % 4 * 16;
      x[0][j] = load_cached(from);
      if (!at.eight) x[1][j] = load_cached(from + 64);
    }
    if constexpr (!TOKEN_SCALES) {
      const int group = (at.eight ? at.slot / 2 : at.slot) >> p.x_group_shift;
#pragma unroll
      for (int j = 0; j < NJ; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int token = j * 8 + lane % 4 * 2 + e;
          if (token < p.shape.tokens) scale[j][e] = p.x_scales[static_cast<i64>(group) * p.x_stride + token];
        }
      }
    }
  }
};

// As in gemm.cu, but each warp for its own 16 rows.
__device__ __forceinline__ void finish(Tile& tile, const Arguments& p, const Plan& plan, int index, int warp, int lane,
                                       u8* corner) {
  const Party party{WM, warp, 32, lane, true};
  Segment s;
  plan.piece(index, s);
  if (s.row16 + warp >= (s.eight ? p.shape.rows8 : p.shape.rows4)) return;
  if (s.end < s.slots) return give_partials(tile, p, party);
  const Rows rows(p, s, warp, lane);
  if (s.begin > 0) take_partials(tile, p, plan, s.tile, party);
  write_tile(tile, p, rows, s, 0, lane, corner);
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) mixed_gemm(const __grid_constant__ Arguments p) {
  extern __shared__ __align__(128) u8 shared[];
  __shared__ Share share;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const u32 ring = shared_address(shared) + warp * RING_BYTES;
  u8* corner = shared + WM * RING_BYTES + warp * WARP_STAGING;
  const Plan plan{p.shape, share};
  if (threadIdx.x == 0) share = plan.own_share();
  __syncthreads();

  Stream stream(plan, p, warp, lane);
  for (int stage = 0; stage < STAGES - 1; ++stage) {
    stream.load(plan, p, ring + stage * STAGE_BYTES, warp, lane);
    copy_commit();
  }
  wait_for_earlier_kernels();
  let_next_kernel_start();

  Place at(plan);
  Activations next = {};
  next.load(p, at, lane);
  Tile tile;
  tile.clear();
  u32 stage = ring, fill = ring + (STAGES - 1) * STAGE_BYTES;
  while (at.more) {
    const Activations now = next;
    const Place here = at;
    const bool last = at.step(plan);
    next.load(p, at, lane);
    copy_wait<STAGES - 2>();
    __syncwarp();
    stream.load(plan, p, fill, warp, lane);
    copy_commit();
    const auto tokens = [&](int panel, int j) { return now.x[panel][j]; };
    const auto scales = [&](int j, int e) { return now.scale[j][e]; };
    if (here.eight)
      accumulate<true>(tile, stage + lane * 16, stage + 1024, tokens, scales, lane);
    else
      accumulate<false>(tile, stage + lane * 16, stage + 1024, tokens, scales, lane);
    fill = stage;
    stage = stage + STAGE_BYTES == ring + RING_BYTES ? ring : stage + STAGE_BYTES;
    if (!last) continue;
    finish(tile, p, plan, here.index, warp, lane, corner);
    tile.clear();
  }
}
