// The product of gemm.cu for many tokens on Hopper: Y^T = W X^T by wgmma, W's rows from registers.
//
// Compiled once for each set of these macros: BN tokens a tile (of 128 rows), STAGES, CLUSTER blocks that share their
// tokens; WEIGHT_SCALES 0 and TOKEN_SCALES 1 (one exact int32 over all of K).
//
// A producer warp has the copy engine fill a ring: a stage is 128 inputs of BN tokens (their swizzled lines, as the
// quantizer writes them: one piece of memory) and of 128 rows (as layout.py has them). Each block of a cluster
// fetches a part of the tokens for all. Two warpgroups of 64 rows unpack one stage's weights in registers while
// their products of the stage before run; neither waits for the other but through the ring.
constexpr int BM = 128, WM = 8, WN = 1, WK = 1;
#include "bulk.cuh"
#include "hopper_epilogue.cuh"
#include "wgmma.cuh"

static_assert(WM * WN * WK * 16 == BM, "a warp has 16 rows, all tokens and all of K");
static_assert(WHOLE_SUM, "the accumulators live in int32 for all of K");

constexpr int CONSUMERS = 2, THREADS = 128 * (CONSUMERS + 1);
constexpr int X_BYTES = BN * 128, W_BYTES = BM * 128, STAGE_BYTES = X_BYTES + W_BYTES;
constexpr int META_BYTES = BM / 16 * META4;
constexpr int META_AT = STAGES * STAGE_BYTES, STAGING_AT = META_AT + STAGES * META_BYTES;
constexpr int TABLE_AT = STAGING_AT + CONSUMERS * STAGING_BYTES, FULL_AT = TABLE_AT + CONSUMERS * BN * 8;
constexpr int EMPTY_AT = FULL_AT + STAGES * 8;
constexpr int PRODUCER_REGISTERS = 40, CONSUMER_REGISTERS = 232;

// A place in the ring and which time round it is.
struct Turn {
  int stage = 0;
  u32 parity = 0;
  __device__ __forceinline__ void next() {
    if (++stage == STAGES) stage = 0, parity ^= 1;
  }
};

__device__ __forceinline__ void produce(const Arguments& p, u32 ring, u32 rank) {
  const int lane = threadIdx.x % 32, groups = p.shape.groups;
  const Tiles tiles{p.shape};
  wait_for_earlier_kernels();
  Turn turn;
  Place place;
  for (int index = 0; tiles.at(index, rank, place); ++index) {
    // Lanes 0..7 fetch a 16-row tile of weights each, lane 8 this block's part of the tokens.
    const int slot = place.eight ? 2048 : 1024, left = p.shape.tokens - place.token;
    const bool weights = lane < place.rows, tokens = lane == BM / 16;
    const i64 row = place.row16 + lane;
    const u8* codes = (place.eight ? p.codes8 : p.codes4) + row * groups * slot;
    const u8* scales = p.scales4 + row * groups * META4;
    constexpr int PART = BN / CLUSTER;
    const int first = static_cast<int>(rank) * PART, count = max(min(left - first, PART), 0);
    const u8* x = reinterpret_cast<const u8*>(p.x) + static_cast<i64>(place.token + first) * 128;
    const u32 bytes = min(left, BN) * 128 + place.rows * (slot + (place.eight ? 0 : META4));
    for (int group = 0; group < groups; ++group, turn.next()) {
      const u32 full = ring + FULL_AT + turn.stage * 8, to = ring + turn.stage * STAGE_BYTES;
      barrier_wait(ring + EMPTY_AT + turn.stage * 8, turn.parity ^ 1);
      if (lane == 0) barrier_expect(full, bytes);
      __syncwarp();
      if (weights) {
        bulk_copy(to + X_BYTES + lane * slot, codes, slot, full);
        if (!place.eight) bulk_copy(ring + META_AT + turn.stage * META_BYTES + lane * META4, scales, META4, full);
      } else if (tokens && count > 0) {
        if (CLUSTER == 1)
          bulk_copy(to, x, count * 128, full);
        else
          bulk_copy_multicast(to + first * 128, x, count * 128, full, (1 << CLUSTER) - 1);
      }
      codes += slot, scales += META4, x += static_cast<i64>(p.shape.tokens) * 128;
    }
  }
}

// A stage's weights of 16 rows as the A operands of four products.
__device__ __forceinline__ void fetch(bool eight, u32 (&a)[4][4], u32 ring, int stage, int tile, int lane) {
  const u32 w = ring + stage * STAGE_BYTES + X_BYTES + tile * (eight ? 2048 : 1024) + lane * 16;
  u32 halves[2][2][4];
  if (eight) {
#pragma unroll
    for (int panel = 0; panel < 2; ++panel)
      unpack8(load_shared(w + panel * 1024), load_shared(w + panel * 1024 + 512), halves[panel]);
#pragma unroll
    for (int i = 0; i < 16; ++i) halves[i / 8][i / 4 % 2][i % 4] ^= SIGNS;
  } else {
    const u32 both = load_shared_u16(ring + META_AT + stage * META_BYTES + tile * META4 + lane / 4 * 2);
    const Affine low = integer_scale(both & 255u), high = integer_scale(both >> 8);
#pragma unroll
    for (int panel = 0; panel < 2; ++panel) unpack4<false>(load_shared(w + panel * 512), low, high, halves[panel]);
  }
#pragma unroll
  for (int step = 0; step < 4; ++step)
#pragma unroll
    for (int i = 0; i < 4; ++i) a[step][i] = halves[step / 2][step % 2][i];
}

__device__ __forceinline__ void start(u32 (&d)[BN / 2], u32 (&a)[4][4], u32 ring, int stage, u32 accumulate) {
  const u64 x = swizzled_tile(ring + stage * STAGE_BYTES);
#pragma unroll
  for (int step = 0; step < 4; ++step) settle(a[step]);
  settle(d);
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < 4; ++step) wgmma<true, BN>(d, a[step], x + step * 2, step == 0 ? accumulate : 1u);
  wgmma_commit();
}

__device__ __forceinline__ void leave(u32 ring, int stage, int lane) {
  if (lane < CLUSTER) barrier_arrive(ring + EMPTY_AT + stage * 8, lane);
}

__device__ __forceinline__ void multiply_all(bool eight, u32 (&d)[BN / 2], u32 ring, Turn& turn, int groups, int tile, int lane) {
  u32 even[4][4], odd[4][4];
  barrier_wait(ring + FULL_AT + turn.stage * 8, turn.parity);
  fetch(eight, even, ring, turn.stage, tile, lane);
  start(d, even, ring, turn.stage, 0);
  // One stage's products run; the next one's weights are unpacked beside them and its products queued.
  const auto step = [&](u32(&a)[4][4]) {
    const int before = turn.stage;
    turn.next();
    barrier_wait(ring + FULL_AT + turn.stage * 8, turn.parity);
    fetch(eight, a, ring, turn.stage, tile, lane);
    start(d, a, ring, turn.stage, 1);
    wgmma_wait<1>();
    leave(ring, before, lane);
  };
  int group = 1;
#pragma unroll 1
  for (; group + 1 < groups; group += 2) {
    step(odd);
    step(even);
  }
  if (group < groups) step(odd);
  wgmma_wait<0>();
  settle(d);
  leave(ring, turn.stage, lane);
  turn.next();
}

__device__ __forceinline__ void consume(const Arguments& p, u32 ring, u32 rank, int group) {
  const int thread = threadIdx.x % 128, lane = thread % 32, tile = group * 4 + thread / 32;
  const u32 staging = ring + STAGING_AT + group * STAGING_BYTES, table = ring + TABLE_AT + group * BN * 8;
  const Tiles tiles{p.shape};
  wait_for_earlier_kernels();
  Turn turn;
  Place place;
  for (int index = 0; tiles.at(index, rank, place); ++index) {
    keep_tokens(table, p, place.token, thread);
    const Pair pair(p, place, tile, lane / 4);
    u32 d[BN / 2];
    multiply_all(place.eight, d, ring, turn, p.shape.groups, tile, lane);
    write(d, p, place, pair, staging, table, group, thread);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) __attribute__((cluster_dims(CLUSTER, 1, 1)))
mixed_gemm(const __grid_constant__ Arguments p) {
  extern __shared__ __align__(1024) u8 shared[];
  const u32 ring = (shared_address(shared) + 1023) / 1024 * 1024;
  const u32 rank = CLUSTER == 1 ? 0 : cluster_rank();
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < STAGES; ++stage) {
      barrier_init(ring + FULL_AT + stage * 8, 1);
      barrier_init(ring + EMPTY_AT + stage * 8, CONSUMERS * 4 * CLUSTER);
    }
    barriers_ready();
  }
  cluster_sync();
  let_next_kernel_start();
  const int role = threadIdx.x / 128;
  if (role == CONSUMERS) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(PRODUCER_REGISTERS));
    if (threadIdx.x < CONSUMERS * 128 + 32) produce(p, ring, rank);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(CONSUMER_REGISTERS));
    consume(p, ring, rank, role);
  }
  // No block goes while another of its cluster may still write to it.
  cluster_sync();
}
