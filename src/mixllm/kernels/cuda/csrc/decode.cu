// The product of gemm.cu for few tokens, where only the reading of weights counts.
//
// Compiled once for each set of these macros: BN tokens, BM rows by WM x WN warps, of which WM divide the rows and WN
// share the slots of a row among them, WK slots a stage, STAGES, BLOCKS, WEIGHT_SCALES and TOKEN_SCALES as in gemm.cu.
//
// Each warp is on its own: it streams the slots of its rows (1,024 bytes each, one after the other in memory) through
// a ring of shared memory that no other warp touches, so nothing waits at a barrier but the sum over a row's warps at
// the end. The warps of a block are at about the same inputs, whose few activations come through L1 straight into
// registers, a stage ahead. A lone warp issues an instruction every six cycles or so: many warps, few instructions.
#include "accumulate.cuh"
#include "epilogue.cuh"

constexpr int THREADS = 32 * WM * WN, MI = BM / 16 / WM, NJ = BN / 8;
constexpr int META = META4 > META8 ? META4 : META8;
constexpr int SCALES_AT = WK * MI * 1024, SCALE_PITCH = WK * META;
constexpr int STAGE_BYTES = SCALES_AT + MI * SCALE_PITCH, RING_BYTES = STAGES * STAGE_BYTES;
constexpr int CORNERS_AT = WM * WN * RING_BYTES, SUMS_AT = CORNERS_AT + WM * WARP_STAGING;
static_assert(MI * WM * 16 == BM && MI * SCALE_PITCH <= 512, "warps divide the rows; one copy a lane for scales");

using Tile = Accumulators<MI, NJ>;
using Plan = Schedule<BM, BN, true>;

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

  __device__ __forceinline__ Stream(const Plan& plan, const Arguments& p, int wm, int turn, int lane) : at(plan, turn) {
    aim(p, wm, lane);
  }
  __device__ __forceinline__ void aim(const Arguments& p, int wm, int lane) {
    if (!at.more) return;
    const int row = at.row16 + wm * MI;
    rows = (at.eight ? p.shape.rows8 : p.shape.rows4) - row;
    codes = (at.eight ? p.codes8 : p.codes4) + (static_cast<i64>(row) * at.slots + at.slot) * 1024 + lane * 16;
    constexpr int PIECES = SCALE_PITCH / 16;
    scales = (at.eight ? p.scales8 : p.scales4) +
             static_cast<i64>(row + lane / PIECES) * p.shape.groups * (at.eight ? META8 : META4) + lane % PIECES * 16;
  }

  __device__ __forceinline__ void load(const Plan& plan, const Arguments& p, u32 stage, int wm, int turn, int lane) {
    if (!at.more) return;
    const int count = at.end - at.slot;
#pragma unroll
    for (int i = 0; i < MI; ++i)
#pragma unroll
      for (int u = 0; u < WK; ++u) {
        if (u >= count || i >= rows) continue;
        const u8* from = codes + static_cast<i64>(i) * at.slots * 1024 + u * 1024;
        copy_async(stage + (u * MI + i) * 1024 + lane * 16, from);
        copy_async(stage + (u * MI + i) * 1024 + lane * 16 + 512, from + 512);
      }
    // The scales of neighbouring groups are neighbours too.
    constexpr int PIECES = SCALE_PITCH / 16;
    const int used = min(WK, count), group = at.eight ? at.slot / 2 : at.slot;
    const int groups = at.eight ? (at.slot + used + 1) / 2 - group : used, bytes = at.eight ? META8 : META4;
    if (lane % PIECES * 16 < groups * bytes && lane < MI * PIECES && lane / PIECES < rows)
      copy_async(stage + SCALES_AT + lane * 16, scales + group * bytes);
    codes += WN * WK * 1024;
    if (at.step(plan, turn)) aim(p, wm, lane);
  }
};

// One stage's activations of a lane; zeros where the stage has fewer slots.
struct Activations {
  Words4 x[WK][2][NJ];
  float scale[WK][NJ][2];

  __device__ __forceinline__ void load(const Arguments& p, const Walk& at, int lane) {
    const int step = at.eight ? 64 : 128;
#pragma unroll
    for (int j = 0; j < NJ; ++j) {
      const int token = j * 8 + lane / 4;
      const i8* from = p.x + (static_cast<i64>(token) * p.shape.groups * 128 + at.slot * step + lane % 4 * 16);
#pragma unroll
      for (int u = 0; u < WK; ++u) {
        const bool valid = token < p.shape.tokens && (u == 0 || at.slot + u < at.end);
        if (u > 0) x[u][0][j] = x[u][1][j] = {0, 0, 0, 0};
        if (valid) x[u][0][j] = load_cached(from + u * step);
        if (valid && !at.eight) x[u][1][j] = load_cached(from + u * step + 64);
      }
    }
    if constexpr (!TOKEN_SCALES) {
#pragma unroll
      for (int u = 0; u < WK; ++u) {
        const int group = (at.eight ? (at.slot + u) / 2 : at.slot + u) >> p.x_group_shift;
#pragma unroll
        for (int j = 0; j < NJ; ++j) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int token = j * 8 + lane % 4 * 2 + e;
            if (token < p.shape.tokens && at.slot + u < at.end)
              scale[u][j][e] = p.x_scales[static_cast<i64>(group) * p.x_stride + token];
          }
        }
      }
    }
  }
};

template <bool EIGHT>
__device__ __forceinline__ void compute(Tile& tile, const Activations& now, u32 stage, int slot, int end, int lane) {
#pragma unroll
  for (int u = 0; u < WK; ++u) {
    const u32 w = stage + u * MI * 1024 + lane * 16;
    const u32 scales = stage + SCALES_AT + (EIGHT ? ((slot + u) / 2 - slot / 2) * META8 : u * META4);
    if constexpr (WHOLE_SUM) {
      // As accumulate(), but the rows outermost: each row's scale is taken apart once.
#pragma unroll
      for (int i = 0; i < MI; ++i) {
        u32 a[2][4];
        if constexpr (EIGHT) {
          unpack8(load_shared(w + i * 1024), load_shared(w + i * 1024 + 512), a);
          multiply<false>(tile, i, a, now.x[u][0]);
        } else {
          const u32 both = load_shared_u16(scales + i * SCALE_PITCH + lane / 4 * 2);
          const Affine low = integer_scale(both & 255u), high = integer_scale(both >> 8);
#pragma unroll
          for (int panel = 0; panel < 2; ++panel) {
            unpack4<false>(load_shared(w + i * 1024 + panel * 512), low, high, a);
            multiply<true>(tile, i, a, now.x[u][panel]);
          }
        }
      }
    } else {
      // Zero activations would make missing weights vanish from integers, but a float scale may be NaN.
      if (slot + u >= end) break;
      accumulate<EIGHT>(
          tile, w, scales, SCALE_PITCH, [&](int panel, int j) { return now.x[u][panel][j]; },
          [&](int j, int e) { return now.scale[u][j][e]; }, [] {}, lane);
    }
  }
}

// The WN warps of a row add up; only they meet at this barrier.
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
  named_barrier<32 * WN>(1 + wm);
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) mixed_gemm(const __grid_constant__ Arguments p) {
  extern __shared__ __align__(128) u8 shared[];
  __shared__ Share share;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, wm = warp % WM, turn = warp / WM;
  const u32 ring = shared_address(shared) + warp * RING_BYTES;
  const Plan plan{p.shape, share};
  if (threadIdx.x == 0) share = plan.own_share();
  __syncthreads();

  Stream stream(plan, p, wm, turn, lane);
  for (int stage = 0; stage < STAGES - 1; ++stage) {
    stream.load(plan, p, ring + stage * STAGE_BYTES, wm, turn, lane);
    copy_commit();
  }
  wait_for_earlier_kernels();
  let_next_kernel_start();

  Walk at(plan, turn);
  Activations next = {};
  if (at.more) next.load(p, at, lane);
  Token token[NJ][2];
  if (turn == 0) {
#pragma unroll
    for (int j = 0; j < NJ; ++j)
#pragma unroll
      for (int e = 0; e < 2; ++e) token[j][e] = Token(p, j * 8 + lane % 4 * 2 + e);
  }

  u32 stage = ring, fill = ring + (STAGES - 1) * STAGE_BYTES;
  Segment here;
  for (int index = 0; plan.piece(index, here); ++index) {
    const Rows rows(p, here, wm, lane);
    Tile tile;
    tile.clear();
    while (at.more && at.index == index) {
      const Activations now = next;
      const int slot = at.slot;
      at.step(plan, turn);
      if (at.more) next.load(p, at, lane);
      copy_wait<STAGES - 2>();
      __syncwarp();
      stream.load(plan, p, fill, wm, turn, lane);
      copy_commit();
      if (here.eight)
        compute<true>(tile, now, stage, slot, here.end, lane);
      else
        compute<false>(tile, now, stage, slot, here.end, lane);
      fill = stage;
      stage = stage + STAGE_BYTES == ring + RING_BYTES ? ring : stage + STAGE_BYTES;
    }
    if (here.row16 + wm * MI >= (here.eight ? p.shape.rows8 : p.shape.rows4)) continue;
    if constexpr (WN > 1) sum_over_row(tile, shared + SUMS_AT, wm, turn, lane);
    if (turn > 0) continue;
    const Party party{WM, wm, 32, lane, true, true};
    if (here.end < here.slots) {
      give_partials(tile, p, party);
      continue;
    }
    if (here.begin > 0) take_partials(tile, p, plan, here.tile, party);
    write_tile(tile, p, rows, [&](int j, int e) { return token[j][e]; }, 0, here.eight, lane,
               shared + CORNERS_AT + wm * WARP_STAGING);
  }
}
