// The product of gemm.cu for many tokens on Hopper: Y^T = W X^T by wgmma, W's rows from registers.
//
// Compiled once for each set of these macros: BN tokens a tile (of 128 rows), STAGES, CLUSTER blocks that share their
// tokens; WEIGHT_SCALES and TOKEN_SCALES as in gemm.cu.
//
// A producer warp has the copy engine fill a ring: a stage is 128 inputs of BN tokens (their swizzled lines, as the
// quantizer writes them: one piece of memory) and of 128 rows (as layout.py has them). Each block of a cluster
// fetches a part of the tokens for all. Two warpgroups of 64 rows unpack one stage's weights in registers while
// their products of the stage before run; neither waits for the other but through the ring.
constexpr int BM = 128, WM = 8, WN = 1, WK = 1;
#include "hopper_epilogue.cuh"
#include "hopper_groups.cuh"

static_assert(WM * WN * WK * 16 == BM, "a warp has 16 rows, all tokens and all of K");

// Of the 168 that a thread starts with the producer gives away what it does not need; its scales need more.
constexpr int PRODUCER_REGISTERS = WHOLE_SUM ? 40 : 56, CONSUMER_REGISTERS = WHOLE_SUM ? 232 : 224;

__device__ __forceinline__ void consume(const Arguments& p, u32 ring, u32 rank, int group) {
  const int thread = threadIdx.x % 128, lane = thread % 32, tile = group * 4 + thread / 32;
  const u32 staging = ring + STAGING_AT + group * STAGING_BYTES, table = ring + TABLE_AT + group * TABLE_BYTES;
  const Tiles tiles{p.shape};
  wait_for_earlier_kernels();
  Turn turn;
  Place place;
  for (int index = 0; tiles.at(index, rank, place); ++index) {
    keep_tokens(table, p, place.token, thread);
    const Pair pair(p, place, tile, lane / 4);
    Sum sums[BN / 2];
    sum_tile(place.eight, sums, ring, turn, p.shape.groups, tile, lane);
    write(sums, p, place, pair, staging, table, group, thread);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) __attribute__((cluster_dims(CLUSTER, 1, 1)))
mixed_gemm(const __grid_constant__ Arguments p) {
  extern __shared__ __align__(1024) u8 shared[];
  const u32 ring = (shared_address(shared) + 1023) / 1024 * 1024;
  const u32 rank = CLUSTER == 1 ? 0 : cluster_rank();
  if (threadIdx.x == 0) ring_init(ring);
  cluster_sync();
  let_next_kernel_start();
  const int role = threadIdx.x / 128;
  if (role == CONSUMERS) {
    shrink_registers<PRODUCER_REGISTERS>();
    if (threadIdx.x < CONSUMERS * 128 + 32) produce(p, ring, rank);
  } else {
    grow_registers<CONSUMER_REGISTERS>();
    consume(p, ring, rank, role);
  }
  // No block goes while another of its cluster may still write to it.
  cluster_sync();
}
