// The product of skinny.cu for so few tokens that a block has all of X in shared memory: strips of 16 rows, none cut.
//
// Compiled once for each set of these macros: BN tokens; WARPS that share a strip's slots; SLOTS a stage; SHARED bytes that a
// block has; BLOCKS that an SM has room for; WEIGHT_SCALES and TOKEN_SCALES as in gemm.cu. CHUNK 0: all of X is there at one
// time; else so many groups of it and the next ones. PEERS: blocks of a cluster, which bring X for each other. QUANTIZE 0: X
// comes quantized. Else each block quantizes all of it for itself, up to QUANTIZE tokens with one scale each, VECTORS of 8
// inputs a thread; INPUT, ROTATE and TAIL as in quantize.cu.
//
// Handing over a cut tile's sums from block to block takes 2 to 3 us however little there is to read. A strip is so little
// that whole ones come out nearly even over the SMs, and what is uneven costs less than it seems: the SMs that have one
// more share the memory's whole bandwidth at the end. The warps of a block have every WARPS-th slot of a strip; one more
// warp adds up what they leave in shared memory and writes it, so that they need not wait for each other.
//
// One lane has the copy engine fill a ring with slots, which lie one after the other in memory, and their scales; and once
// earlier kernels are done, all of X, in rows. With room for two blocks on an SM the next product's blocks are there while
// this one runs, their rings full.
//
// Every lane arrives at a barrier for what it read or wrote. One for its warp after __syncwarp would do, but racecheck counts only
// the accesses of those that arrive; it takes no longer (docs/kernels.md).
//
// Where all of X has no room, up to BATCH strips are multiplied by one chunk of it after the other, which another warp asks
// for; their sums are kept meanwhile.
constexpr int BM = 16, WM = 1;
#if QUANTIZE > 0
#include "strips_fresh.cuh"
#else
#include "strips_given.cuh"
#endif
#include "strips_sums.cuh"

// All that the fetching lane does.
__device__ __forceinline__ void fetch_all(const Given& given, const Strips& strips, const Space& space) {
  const Arguments& p = product_of(given);
  Walk at(strips);
  for (int stage = 0; stage < space.stages && at.more; ++stage) {
    fill(p, at, space, stage);
    at.step(strips);
  }
  fetch_x(given, space);
  Turn turn;
  for (; at.more; turn.next(space.stages)) {
    barrier_wait(space.base + EMPTY_AT + turn.stage * 8, turn.parity);
    fill(p, at, space, turn.stage);
    at.step(strips);
  }
}

// Goes through a block's strips in the order in which they are multiplied: visit(strip, index, chunk) for each chunk of X.
// begin_chunk(turn, chunk), end_chunk(turn): before the first and behind the last strip of each.
template <typename Begin, typename Visit, typename End>
__device__ __forceinline__ void go_through(const Strips& strips, Begin begin_chunk, Visit visit, End end_chunk) {
  const int chunks = chunks_of(strips.shape);
  Strip here;
  int turn = 0;
  for (int begin = 0; strips.at(begin, here); begin += BATCH) {
    for (int chunk = 0; chunk < chunks; ++chunk, ++turn) {
      begin_chunk(turn, chunk);
      for (int index = begin; (!CHUNKED || index < begin + BATCH) && strips.at(index, here); ++index) visit(here, index, chunk);
      end_chunk(turn);
    }
    if (!CHUNKED) break;
  }
}

__device__ __forceinline__ void consume(const Given& given, const Strips& strips, const Space& space, u8* shared, int warp,
                                        int lane) {
  wait_for_earlier_kernels();
  await_x(given, space, shared, warp, lane);
  Tokens x(product_of(given), space, 0, 0, lane);
  Turn turn;
  int pieces = 0;
  go_through(
      strips,
      [&](int x_turn, int chunk) {
        if (!CHUNKED) return;
        barrier_wait(space.base + X_FULL_AT + x_turn % 2 * 8, x_turn / 2 % 2);
        x = Tokens(product_of(given), space, x_turn, chunk, lane);
      },
      [&](const Strip& here, int, int chunk) {
        Tile tile;
        tile.clear();
        const Part part(here, chunk);
        for (int first = part.begin; first < part.end; first += SLOTS) {
          const u32 stage = space.stage(turn.stage);
          const int count = min(SLOTS, part.end - first);
          barrier_wait(space.base + FULL_AT + turn.stage * 8, turn.parity);
          if (here.eight)
            add_stage<true>(tile, x, stage, first, count, warp, lane);
          else
            add_stage<false>(tile, x, stage, first, count, warp, lane);
          __syncwarp();
          barrier_arrive(space.base + EMPTY_AT + turn.stage * 8);
          turn.next(space.stages);
        }
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
        if (CHUNKED) barrier_arrive(space.base + X_EMPTY_AT + x_turn % 2 * 8);
      });
}

// All that the writing warp does.
__device__ __forceinline__ void write_all(const Arguments& p, const Strips& strips, const Space& space, u8* shared, int lane) {
  const int chunks = chunks_of(p.shape);
  // What must be known of a strip's rows is asked for while the one before is multiplied.
  Pair rows;
  const auto ask = [&](int index) {
    Strip next;
    if (strips.at(index, next)) rows = Pair(p, next.row16, next.eight, lane / 4);
  };
  ask(0);
  wait_for_earlier_kernels();
  int pieces = 0;
  go_through(
      strips, [](int, int) {},
      [&](const Strip& here, int index, int chunk) {
        const int set = pieces % 2;
        Tile tile;
        tile.clear();
        Words4* kept = reinterpret_cast<Words4*>(shared + KEPT_AT + index % BATCH * (16 * BN * 4)) + lane;
        if (CHUNKED && chunk > 0) {
#pragma unroll
          for (int j = 0; j < NJ; ++j) tile.add(0, j, kept[j * 32]);
        }
        barrier_wait(space.base + SUMS_FULL_AT + set * 8, pieces / 2 % 2);
        const Words4* sums = reinterpret_cast<const Words4*>(shared + SUMS_AT + set * SUM_BYTES) + lane;
#pragma unroll
        for (int warp = 0; warp < WARPS; ++warp)
#pragma unroll
          for (int j = 0; j < NJ; ++j) tile.add(0, j, sums[(warp * NJ + j) * 32]);
        __syncwarp();
        barrier_arrive(space.base + SUMS_EMPTY_AT + set * 8);
        ++pieces;
        if (CHUNKED && chunk + 1 < chunks) {
#pragma unroll
          for (int j = 0; j < NJ; ++j) kept[j * 32] = tile.words(0, j);
          return;
        }
        write(tile, p, rows, space.base + TABLE_AT, !here.eight, lane % 4);
        ask(index + 1);
      },
      [](int) {});
}

#if PEERS > 1
#define CLUSTER __attribute__((cluster_dims(PEERS, 1, 1)))
#else
#define CLUSTER
#endif

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) CLUSTER mixed_gemm(const __grid_constant__ Given given) {
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
      barrier_init(space.base + SUMS_EMPTY_AT + turn * 8, 32);
    }
    barriers_made();
  }
  __syncthreads();
  if constexpr (PEERS > 1) cluster_arrive();
  const Strips strips(p.shape);
  if (warp < WARPS)
    consume(given, strips, space, shared, warp, lane);
  else if (warp == WRITER)
    write_all(p, strips, space, shared, lane);
  else if (lane == 0 && warp == FETCHER)
    fetch_all(given, strips, space);
#if CHUNK > 0
  else if (lane == 0)
    fetch_chunks(given, strips, space);
#endif
}
