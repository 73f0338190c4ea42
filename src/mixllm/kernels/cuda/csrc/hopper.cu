// The product of gemm.cu for many tokens on Hopper: Y^T = W X^T by wgmma, W's rows from registers.
//
// Compiled once for each set of these macros: BN tokens a tile (of 128 rows), STAGES; WEIGHT_SCALES and TOKEN_SCALES as in
// gemm.cu.
//
// Three warps fill a ring: a stage is 128 inputs of BN tokens (their swizzled lines, as the quantizer writes them:
// one piece of memory) and of 128 rows (as layout.py has them). A fourth notes what is to be known of the tiles to
// come. Two warpgroups of 64 rows unpack one stage's weights in registers while their products of the stage before
// run; neither waits for the other but through the ring and where they write their sums out together.
constexpr int BM = 128, WM = 8, WN = 1, WK = 1;
#include "hopper_partials.cuh"
#if WEIGHT_SCALES == 0 && TOKEN_SCALES
#include "hopper_whole.cuh"
#else
#include "hopper_floats.cuh"
#endif

static_assert(WM * WN * WK * 16 == BM, "a warp has 16 rows, all tokens and all of K");
static_assert(DYNAMIC_SHARED % 1024 == 0, "swizzled lines are aligned");
static_assert(STAGES >= 3, "the next stage is awaited before the one before is left");

// Of the 168 that a thread starts with the producers give away what they do not need.
constexpr int PRODUCER_REGISTERS = 56, CONSUMER_REGISTERS = 224;

__device__ __forceinline__ void consume(const Arguments& p, u32 ring) {
  const int thread = threadIdx.x, lane = thread % 32, tile = thread / 32;
  const int stages = Tiles{p.shape}.stages();
  Turn turn;
  Round<2> page;
  for (;; page.next()) {
    const u32 note = ring + NOTES_AT + page.stage * NOTE_BYTES;
    barrier_wait(ring + PLACED_AT + page.stage * 8, page.parity);
    const Words4 place = load_shared(note + PLACE_AT);
    const int begin = static_cast<int>(place.z), end = static_cast<int>(place.w);
    if (end == 0) break;
    const u32 codes = load_shared_u32(note + ROWS16_AT + tile * 4);
    Sum sums[BN / 2];
    sum_tile({tile, lane, codes / 2 * 1024, codes % 2 != 0}, sums, ring, turn, {begin, end, p.shape.groups});
    barrier_wait(ring + NOTED_AT + page.stage * 8, page.parity);
    const Share64 share{note, ring + STAGING_AT, static_cast<int>(place.x), thread};
    if (end < stages) {
      give(sums, p, share);
    } else {
      if (begin > 0) take(sums, p, share, static_cast<int>(place.y) * stages);
      write(sums, p, share);
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(ring + READ_AT + page.stage * 8);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) mixed_gemm(const __grid_constant__ Arguments p) {
  extern __shared__ __align__(1024) u8 shared[];
  // A constant: else each stage computes it anew, from a slow register, before its products. (With one int32 sum and
  // fewer than 256 tokens a tile the constant is 2 to 4 % slower.)
  const u32 ring = WHOLE_SUM && BN < 256 ? (shared_address(shared) + 1023) / 1024 * 1024 : DYNAMIC_SHARED;
  if (shared_address(shared) != DYNAMIC_SHARED) trap();
  if (threadIdx.x == 0) ring_init(ring);
  __syncthreads();
  let_next_kernel_start();
  if (threadIdx.x >= CONSUMERS * 128) {
    shrink_registers<PRODUCER_REGISTERS>();
    give_first_turn();
    const int warp = threadIdx.x / 32 % 4;
    if (warp < 2)
      produce_codes(p, ring, warp);
    else if (warp == 2)
      produce_tokens(p, ring);
    else
      take_notes(p, ring);
  } else {
    grow_registers<CONSUMER_REGISTERS>();
    consume(p, ring);
  }
}
