// The product of skinny.cu for so few tokens that a block has all of X in shared memory: strips of 16 rows, none cut.
//
// Compiled once for each set of these macros: BN tokens; WARPS that share a strip's slots; SLOTS a stage; SHARED bytes that a
// block has; BLOCKS that an SM has room for; WEIGHT_SCALES and TOKEN_SCALES as in gemm.cu. CHUNK 0: all of X is there at one
// time; else so many groups of it and the next ones. HELD 0: X is multiplied from there; else a warp has so many groups of it
// in registers. PEERS: blocks of a cluster, which bring X for each other. HEAD: see fetch_weights(). QUANTIZE 0: X comes quantized. Else each block
// quantizes all of it for itself, up to QUANTIZE tokens with one scale each, VECTORS of 8 inputs a thread; INPUT, ROTATE and
// TAIL as in quantize.cu.
//
// Handing over a cut tile's sums from block to block takes 2 to 3 us however little there is to read. A strip is so little
// that whole ones come out nearly even over the SMs, and what is uneven costs less than it seems: the SMs that have one
// more share the memory's whole bandwidth at the end. The warps of a block have every WARPS-th slot of a strip; two more
// add up what they leave in shared memory and write it, so that they need not wait for each other.
//
// One lane has the copy engine fill a ring with slots, which lie one after the other in memory, and their scales; another one,
// once earlier kernels are done, has it bring all of X, in rows. With room for two blocks on an SM the next product's blocks
// are there while this one runs, their rings full.
//
// Every lane arrives at a barrier for what it read or wrote. One for its warp after __syncwarp would do, but racecheck counts only
// the accesses of those that arrive; it takes no longer (docs/kernels.md).
//
// Where all of X has no room, up to BATCH strips are multiplied by one chunk of it after the other; their sums are kept
// meanwhile.
constexpr int BM = 16, WM = 1;
#if QUANTIZE > 0
#include "strips_fresh.cuh"
#else
#include "strips_given.cuh"
#endif
#if HELD > 0
#include "strips_held.cuh"
#else
#include "strips_sums.cuh"
#endif
#include "strips_writer.cuh"

// While a full ring waits for X, which a quantizer makes, L2 is asked for the next 64 KB behind it: a stage in about the time
// that all blocks' take to come, so that X finds the way free.
__device__ __forceinline__ void fetch_ahead(const Arguments& p, const Strips& strips, const Space& space, Walk at) {
  constexpr int AHEAD = 65536 / STAGE_BYTES, NANOSECONDS = STAGE_BYTES / 32;
  for (int asked = 0; asked < AHEAD && at.more; ++asked) {
    if (barrier_over_within(space.base + EMPTY_AT, 0, NANOSECONDS)) return;
    fill_l2(p, at);
    at.step(strips);
  }
}

// All that the lane that fetches weights does. Copies that were asked for before hold up X's, which are small and urgent: until
// all of the ring has been asked for once, HEAD stages at most are on their way. Where it quantizes there is no such X.
__device__ __forceinline__ void fetch_weights(const Arguments& p, const Strips& strips, const Space& space) {
  constexpr int FIRST = QUANTIZE > 0 ? MOST_STAGES : HEAD;
  Walk at(strips);
  for (int stage = 0; stage < space.stages && at.more; ++stage) {
    if (stage >= FIRST) barrier_wait(space.base + FULL_AT + (stage - FIRST) * 8, 0);
    fill(p, at, space, stage);
    at.step(strips);
  }
  if constexpr (QUANTIZE == 0) fetch_ahead(p, strips, space, at);
  Turn turn;
  for (; at.more; turn.next(space.stages)) {
    barrier_wait(space.base + EMPTY_AT + turn.stage * 8, turn.parity);
    fill(p, at, space, turn.stage);
    at.step(strips);
  }
}

__device__ __forceinline__ void consume(const Given& given, const Strips& strips, const Space& space, u8* shared, int warp,
                                        int lane) {
  const Arguments& p = product_of(given);
  wait_for_earlier_kernels();
  await_x(given, space, shared, warp, lane);
  Inputs x;
  if (!CHUNKED) x.enter(p, space, 0, 0, warp, lane);
  Turn turn;
  int pieces = 0;
  const auto leave = [&](int x_turn) { barrier_arrive(space.base + X_EMPTY_AT + x_turn % 2 * 8); };
  go_through(
      strips,
      [&](int x_turn, int chunk) {
        if (!CHUNKED) return;
        barrier_wait(space.base + X_FULL_AT + x_turn % 2 * 8, x_turn / 2 % 2);
        x.enter(p, space, x_turn, chunk, warp, lane);
        if (HELD > 0) leave(x_turn);
      },
      [&](const Strip& here, int, int chunk) {
        Tile tile;
        tile.clear();
        const Part part(here, chunk);
        if (here.eight)
          x.add_part<true>(tile, part, space, turn, warp, lane);
        else
          x.add_part<false>(tile, part, space, turn, warp, lane);
        const int set = pieces % 2;
        if (pieces > 1) barrier_wait(space.base + SUMS_EMPTY_AT + set * 8, (pieces / 2 - 1) % 2);
        Words4* sums = reinterpret_cast<Words4*>(shared + SUMS_AT + set * SUM_BYTES) + lane;
#pragma unroll
        for (int j = 0; j < NJ; ++j) sums[(warp * NJ + j) * 32] = tile.words(0, j);
        __syncwarp();
        barrier_arrive(space.base + SUMS_FULL_AT + set * 8);
        ++pieces;
      },
      [&](int x_turn) {
        __syncwarp();
        if (CHUNKED && HELD == 0) leave(x_turn);
      });
}

#if PEERS > 1
#define CLUSTER __attribute__((cluster_dims(PEERS, 1, 1)))
#else
#define CLUSTER
#endif

// With these the quantizer's block of 512 threads finds registers beside one that holds 16 tokens of short inputs.
#if HELD > 0 && CHUNK == 0 && BN > 8
#define BOUNDS __maxnreg__(112)
#else
#define BOUNDS __launch_bounds__(THREADS, BLOCKS)
#endif

extern "C" __global__ void BOUNDS CLUSTER mixed_gemm(const __grid_constant__ Given given) {
  extern __shared__ __align__(128) u8 shared[];
  let_next_kernel_start();
  const Arguments& p = product_of(given);
  const Space space(p, shared_address(shared));
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < MOST_STAGES; ++stage) {
      barrier_init(space.base + FULL_AT + stage * 8, 1);
      barrier_init(space.base + EMPTY_AT + stage * 8, 32 * WARPS);
    }
    for (int turn = 0; turn < 2; ++turn) {
      barrier_init(space.base + X_FULL_AT + turn * 8, 1);
      barrier_init(space.base + X_EMPTY_AT + turn * 8, 32 * WARPS);
      barrier_init(space.base + SUMS_FULL_AT + turn * 8, 32 * WARPS);
      barrier_init(space.base + SUMS_EMPTY_AT + turn * 8, 32 * WRITERS);
    }
    barriers_made();
  }
  __syncthreads();
  if constexpr (PEERS > 1) cluster_arrive();
  const Strips strips(p.shape);
  if (warp < WARPS)
    consume(given, strips, space, shared, warp, lane);
  else if (warp < FETCHER)
    write_all(p, strips, space, shared, warp - WRITER, lane);
  else if (lane == 0 && warp == FETCHER)
    fetch_weights(p, strips, space);
  else if (lane == 0)
    fetch_x(given, strips, space);
}
