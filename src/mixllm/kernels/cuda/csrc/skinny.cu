// The product of gemm.cu for up to BN tokens on Hopper: Y^T = W X^T by wgmma, at the speed of reading W.
//
// Compiled once for each set of these macros: BN tokens, BM rows, WK slots a stage, which KG sets of warps share; SETS of
// registers for weights, one being multiplied while the next is unpacked; STAGES; BLOCKS that an SM has room for;
// WEIGHT_SCALES and TOKEN_SCALES as in gemm.cu.
//
// One warp has the copy engine fill a ring (skinny_ring.cuh), warpgroups of 64 rows each turn stages into sums
// (skinny_sums.cuh). Activations come in the order and swizzle of hopper.cu. All blocks have equal bytes to read
// (schedule.cuh); a warp hands its part of a cut tile on by itself.
//
// The next kernel may start at once: where a block takes less than half of an SM, the next product's blocks are there
// while this one runs, with their rings full when its last sums are written.
constexpr int WM = BM / 16;
#include "direct.cuh"
#include "skinny_sums.cuh"

static_assert(WM % 4 == 0, "warpgroups of 64 rows");

// Sums of the KG warps that share rows; true for the one that has them. Two sets of sums are used by turns, so that a warp
// which is ahead by a piece overwrites nothing.
__device__ __forceinline__ bool sum_over_parts(Tile& tile, u8* sums, int wm, int part, int lane) {
  Words4* slots = reinterpret_cast<Words4*>(sums) + lane;
  if (part > 0) {
#pragma unroll
    for (int j = 0; j < BN / 8; ++j) slots[(((part - 1) * WM + wm) * (BN / 8) + j) * 32] = tile.words(0, j);
  }
  named_barrier<32 * CONSUMERS>(1);
  if (part > 0) return false;
#pragma unroll
  for (int k = 0; k < KG - 1; ++k)
#pragma unroll
    for (int j = 0; j < BN / 8; ++j) tile.add(0, j, slots[((k * WM + wm) * (BN / 8) + j) * 32]);
  return true;
}

// As epilogue.cuh's, for a warp: all flags are awaited at once and several blocks' sums asked for, nearest added first.
__device__ __forceinline__ void collect(Tile& tile, const Arguments& p, const Plan& plan, int index, int wm, int lane) {
  constexpr int NJ = BN / 8, AT_ONCE = NJ >= 8 ? 1 : 8 / NJ;
  for (int nearest = static_cast<int>(blockIdx.x) - 1;; nearest -= 32) {
    const int block = nearest - lane;
    bool reaches = block >= 0, has = false;
    if (reaches) {
      int first_tile, first_slot, last_tile, last_slot;
      plan.start_of(block, first_tile, first_slot);
      plan.start_of(block + 1, last_tile, last_slot);
      reaches = last_tile > index || (last_tile == index && last_slot > 0);
      // With fewer slots than blocks some blocks have none.
      has = reaches && (first_tile != last_tile || first_slot != last_slot);
    }
    if (has) {
      int* flag = p.flags + block * WM + wm;
      while (read_flag(flag) == 0) {
      }
      *flag = 0;
    }
    u32 there = __ballot_sync(0xFFFFFFFFu, has);
    while (there != 0) {
      Words4 parts[AT_ONCE][NJ];
#pragma unroll
      for (int n = 0; n < AT_ONCE; ++n) {
        const int from = nearest - (__ffs(there) - 1);
        const Words4* words = reinterpret_cast<const Words4*>(p.partials) + (static_cast<i64>(from) * WM + wm) * NJ * 32 + lane;
#pragma unroll
        for (int j = 0; j < NJ; ++j) parts[n][j] = there != 0 ? load_l2(words + j * 32) : Words4{0, 0, 0, 0};
        there &= there - 1;
      }
#pragma unroll
      for (int n = 0; n < AT_ONCE; ++n)
#pragma unroll
        for (int j = 0; j < NJ; ++j) tile.add(0, j, parts[n][j]);
    }
    if (__ballot_sync(0xFFFFFFFFu, reaches) >> 31 == 0) return;
  }
}

__device__ __forceinline__ void consume(const Arguments& p, const Plan& plan, u8* shared, int warp, int lane) {
  const u32 ring = shared_address(shared), table = ring + TABLE_AT;
  const int wm = warp % WM, part = warp / WM;
  Segment here;
  bool more = plan.piece(0, here);
  Pair rows;
  if (more) rows = Pair(p, here.row16 + wm, here.eight, lane / 4);
  wait_for_earlier_kernels();
  note_tokens<32 * CONSUMERS>(p, table, threadIdx.x);
  named_barrier<32 * CONSUMERS>(1);
  Turn turn;
  for (int index = 0; more; ++index) {
    Sum sums[BN / 2];
    sum_piece(sums, here, ring, x_pitch(p), turn, wm, part, lane);
    Tile tile;
#pragma unroll
    for (int i = 0; i < BN / 2; ++i)
      tile.v[0][i / 4][i % 4] = WHOLE_SUM ? static_cast<int>(sums[i]) : __float_as_int(sums[i]);
    const bool mine = KG == 1 || sum_over_parts(tile, shared + SUMS_AT + index % 2 * SUM_BYTES, wm, part, lane);
    if (mine && here.row16 + wm < (here.eight ? p.shape.rows8 : p.shape.rows4)) {
      if (here.end < here.slots) {
        give_partials(tile, p, {WM, wm, 32, lane, true, true});
      } else {
        if (here.begin > 0) collect(tile, p, plan, here.tile, wm, lane);
        write(tile, p, rows, table, true, lane % 4);
      }
    }
    more = plan.piece(index + 1, here);
    if (more) rows = Pair(p, here.row16 + wm, here.eight, lane / 4);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) mixed_gemm(const __grid_constant__ Arguments p) {
  extern __shared__ __align__(1024) u8 shared[];
  let_next_kernel_start();
  const u32 ring = shared_address(shared);
  Share& share = *reinterpret_cast<Share*>(shared + SHARE_AT);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const Plan plan{p.shape, share};
  if (threadIdx.x == 0) {
    share = plan.own_share();
    ring_init(ring);
  }
  __syncthreads();
  if (warp == CONSUMERS)
    fetch_all(p, plan, ring, lane);
  else
    consume(p, plan, shared, warp, lane);
}
