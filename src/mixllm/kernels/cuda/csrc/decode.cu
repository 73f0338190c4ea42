// The product of gemm.cu for few tokens, where only the reading of weights counts.
//
// Compiled once for each set of these macros: BN tokens, BM rows by WM x WN warps, of which WM divide the rows and WN
// share the slots of a row among them, WK slots a stage, STAGES, BLOCKS, WEIGHT_SCALES and TOKEN_SCALES as in gemm.cu.
//
// Each warp is on its own: it streams the slots of its rows (1,024 bytes each, one after the other in memory) through
// a ring that no other warp touches (ring.cuh), so nothing waits at a barrier but the sum over a row's warps at the end
// of a tile. The warps of a block are at about the same inputs, whose few activations come through L1 straight into
// registers, a slot ahead.
//
// The next kernel may start at once, and a block takes less than half of an SM: the next product's blocks are there
// while this one runs, with their rings full when its last sums are written.
#include "accumulate.cuh"
#include "epilogue.cuh"
#include "ring.cuh"

constexpr int THREADS = 32 * WM * WN, MI = BM / 16 / WM, NJ = BN / 8;
constexpr int META = META4 > META8 ? META4 : META8;
constexpr int SCALES_AT = WK * MI * 1024, SCALE_PITCH = WK * META;
constexpr int STAGE_BYTES = SCALES_AT + MI * SCALE_PITCH, RING_BYTES = STAGES * STAGE_BYTES;
constexpr int CORNERS_AT = WM * WN * RING_BYTES, SUMS_AT = CORNERS_AT + WM * WARP_STAGING;
constexpr int SUM_BYTES = (WN - 1) * BM * BN * 4;
constexpr int BARRIERS_AT = SUMS_AT + 2 * SUM_BYTES;
static_assert(MI * WM * 16 == BM, "warps divide the rows");
static_assert(NJ <= 2, "a slot's activations live in registers twice");

using Tile = Accumulators<MI, NJ>;
using Plan = Schedule<BM, BN, true>;
using WarpRing = Ring<STAGES, STAGE_BYTES>;

// A warp's way through its stages, piece after piece; the WN warps of a row take stages in turn.
struct Walk {
  int index = 0, slot, end, row16, slots;
  bool more, eight;

  __device__ __forceinline__ Walk(const Plan& plan, int turn) { enter(plan, turn); }
  __device__ __forceinline__ void enter(const Plan& plan, int turn) {
    Segment s;
    while ((more = plan.piece(index, s)) && s.begin + turn * WK >= s.end) ++index;
    slot = s.begin + turn * WK, end = s.end, row16 = s.row16, slots = s.slots, eight = s.eight;
  }
  __device__ __forceinline__ int count() const { return min(WK, end - slot); }
  // True when that left the piece.
  __device__ __forceinline__ bool step(const Plan& plan, int turn) {
    slot += WN * WK;
    if (slot < end) return false;
    ++index;
    enter(plan, turn);
    return true;
  }
};

// The weights' way into the ring, from pointers that only move on.
struct Stream {
  Walk at;
  const u8 *codes, *scales;
  int rows;  // of this warp's 16-row tiles, how many the weight has

  __device__ __forceinline__ Stream(const Plan& plan, const Arguments& p, int wm, int turn) : at(plan, turn) {
    aim(p, wm);
  }
  __device__ __forceinline__ void aim(const Arguments& p, int wm) {
    if (!at.more) return;
    const int row = at.row16 + wm * MI;
    rows = max(0, min(MI, (at.eight ? p.shape.rows8 : p.shape.rows4) - row));
    codes = (at.eight ? p.codes8 : p.codes4) + (static_cast<i64>(row) * at.slots + at.slot) * 1024;
    scales = (at.eight ? p.scales8 : p.scales4) + static_cast<i64>(row) * p.shape.groups * (at.eight ? META8 : META4);
  }

  __device__ __forceinline__ void fill(const Plan& plan, const Arguments& p, const WarpRing& ring, int stage, int wm,
                                       int turn) {
    if (at.more) {
      const int count = at.count(), bytes = count * 1024;
      // The scales of neighbouring groups are neighbours too; two 8-bit slots share a group.
      const int group = at.eight ? at.slot / 2 : at.slot, meta = at.eight ? META8 : META4;
      const int scale_bytes = (at.eight ? (at.slot + count + 1) / 2 - group : count) * meta;
      ring.expect(stage, rows * (bytes + scale_bytes));
#pragma unroll
      for (int i = 0; i < MI; ++i) {
        if (i >= rows) continue;
        ring.copy<WK * 1024>(stage, i * WK * 1024, codes + static_cast<i64>(i) * at.slots * 1024, bytes);
        if (scale_bytes > 0)
          ring.copy<SCALE_PITCH>(stage, SCALES_AT + i * SCALE_PITCH, scales + (i * p.shape.groups + group) * meta, scale_bytes);
      }
      codes += WN * WK * 1024;
      if (at.step(plan, turn)) aim(p, wm);
    }
    ring.commit();
  }
};

// One slot's activations of a lane.
struct Activations {
  Words4 x[2][NJ];
  float scale[NJ][2];

  __device__ __forceinline__ void load(const Arguments& p, int slot, bool eight, int lane) {
    const int from = slot * (eight ? 64 : 128) + lane % 4 * 16;
#pragma unroll
    for (int j = 0; j < NJ; ++j) {
      const int token = j * 8 + lane / 4;
      const i8* row = p.x + (static_cast<i64>(token) * p.shape.groups * 128 + from);
      if (token < p.shape.tokens) x[0][j] = load_cached(row);
      if (token < p.shape.tokens && !eight) x[1][j] = load_cached(row + 64);
    }
    if constexpr (!TOKEN_SCALES) {
      const int group = (eight ? slot / 2 : slot) >> p.x_group_shift;
#pragma unroll
      for (int j = 0; j < NJ; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int token = j * 8 + lane % 4 * 2 + e;
          if (token < p.shape.tokens) scale[j][e] = p.x_scales[static_cast<i64>(group) * p.x_stride + token];
        }
    }
  }
};

template <bool EIGHT>
__device__ __forceinline__ void compute(Tile& tile, const Activations& now, u32 w, u32 scales, int lane) {
  if constexpr (WHOLE_SUM) {
    // As accumulate(), but the rows outermost: each row's scale is taken apart once.
#pragma unroll
    for (int i = 0; i < MI; ++i) {
      u32 a[2][4];
      const u32 codes = w + i * WK * 1024;
      if constexpr (EIGHT) {
        unpack8(load_shared(codes), load_shared(codes + 512), a);
        multiply<false>(tile, i, a, now.x[0]);
      } else {
        const u32 both = load_shared_u16(scales + i * SCALE_PITCH + lane / 4 * 2);
        const Affine low = integer_scale(both & 255u), high = integer_scale(both >> 8);
#pragma unroll
        for (int panel = 0; panel < 2; ++panel) {
          unpack4<false>(load_shared(codes + panel * 512), low, high, a);
          multiply<true>(tile, i, a, now.x[panel]);
        }
      }
    }
  } else {
    accumulate<EIGHT>(
        tile, w, WK * 1024, scales, SCALE_PITCH, [&](int panel, int j) { return now.x[panel][j]; },
        [&](int j, int e) { return now.scale[j][e]; }, [] {}, lane);
  }
}

// The WN warps of a row add up in the order of their turns; only they meet at this barrier. Two sets of sums are used by
// turns, so that a warp which is ahead by a tile overwrites nothing.
__device__ __forceinline__ void sum_over_row(Tile& tile, u8* sums, int wm, int turn, int lane) {
  Words4* slots = reinterpret_cast<Words4*>(sums) + lane;
  if (turn > 0) {
#pragma unroll
    for (int i = 0; i < MI; ++i)
#pragma unroll
      for (int j = 0; j < NJ; ++j) slots[((((turn - 1) * WM + wm) * MI + i) * NJ + j) * 32] = tile.words(i, j);
  }
  named_barrier<32 * WN>(1 + wm);
  if (turn == 0) {
#pragma unroll
    for (int k = 0; k < WN - 1; ++k)
#pragma unroll
      for (int i = 0; i < MI; ++i)
#pragma unroll
        for (int j = 0; j < NJ; ++j) tile.add(i, j, slots[(((k * WM + wm) * MI + i) * NJ + j) * 32]);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) mixed_gemm(const __grid_constant__ Arguments p) {
  extern __shared__ __align__(128) u8 shared[];
  __shared__ Share share;
  let_next_kernel_start();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, wm = warp % WM, turn = warp / WM;
  const u32 base = shared_address(shared);
  const WarpRing ring(base + warp * RING_BYTES, base + BARRIERS_AT + warp * STAGES * BARRIER_BYTES, lane);
  const Plan plan{p.shape, share};
  if (threadIdx.x == 0) share = plan.own_share();
  __syncthreads();

  Stream stream(plan, p, wm, turn);
  for (int stage = 0; stage < STAGES; ++stage) stream.fill(plan, p, ring, stage, wm, turn);
  wait_for_earlier_kernels();

  Walk at(plan, turn);
  Activations next = {};
  if (at.more) next.load(p, at.slot, at.eight, lane);
  Token tokens[NJ][2];
  if (turn == 0) {
#pragma unroll
    for (int j = 0; j < NJ; ++j)
#pragma unroll
      for (int e = 0; e < 2; ++e) tokens[j][e] = Token(p, j * 8 + lane % 4 * 2 + e);
  }

  int stage = 0;
  u32 parity = 0;
  Segment here;
  for (int index = 0; plan.piece(index, here); ++index) {
    const bool there = here.row16 + wm * MI < (here.eight ? p.shape.rows8 : p.shape.rows4);
    const Rows rows(p, here, wm, lane);
    Tile tile;
    tile.clear();
    while (at.more && at.index == index) {
      const int slot = at.slot, count = at.count();
      at.step(plan, turn);
      const u32 w = ring.data + stage * STAGE_BYTES + lane * 16, scales = ring.data + stage * STAGE_BYTES + SCALES_AT;
      ring.wait(stage, parity);
#pragma unroll
      for (int u = 0; u < WK; ++u) {
        if (u >= count) break;
        const Activations now = next;
        if (u + 1 < count)
          next.load(p, slot + u + 1, here.eight, lane);
        else if (at.more)
          next.load(p, at.slot, at.eight, lane);
        if (!there) continue;
        if (here.eight)
          compute<true>(tile, now, w + u * 1024, scales + ((slot + u) / 2 - slot / 2) * META8, lane);
        else
          compute<false>(tile, now, w + u * 1024, scales + u * META4, lane);
      }
      __syncwarp();
      stream.fill(plan, p, ring, stage, wm, turn);
      if (++stage == STAGES) stage = 0, parity ^= 1;
    }
    if (!there) continue;
    if constexpr (WN > 1) sum_over_row(tile, shared + SUMS_AT + index % 2 * SUM_BYTES, wm, turn, lane);
    if (turn > 0) continue;
    const Party party{WM, wm, 32, lane, true, true};
    if (here.end < here.slots) {
      give_partials(tile, p, party);
      continue;
    }
    if (here.begin > 0) take_partials(tile, p, plan, here.tile, party);
    write_tile(tile, p, rows, [&](int j, int e) { return tokens[j][e]; }, 0, here.eight, lane,
               shared + CORNERS_AT + wm * WARP_STAGING);
  }
}
