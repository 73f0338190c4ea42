// The product of skinny.cu where a cluster has each tile of 64 rows: every block of it a part of K, so that its part of X stays
// in shared memory throughout and partial sums go from block to block there.
//
// Compiled once for each set of these macros: BN tokens; PEERS blocks of a cluster; SLOTS a stage; SHARED bytes that a block
// has; BLOCKS that an SM has room for. Sums are whole (WEIGHT_SCALES 0, TOKEN_SCALES 1). QUANTIZE 1: the blocks quantize their
// parts of X by themselves; VECTORS, INPUT, ROTATE and TAIL as in fresh.cuh.
//
// Two warpgroups have every second slot of a tile's part. Each warp sends the sums of its 16 rows to one block of the
// cluster, by turns where there are more than four, where a warp of its own adds them up and writes them.
constexpr int BM = 64, WM = 4;
#include "cluster_ring.cuh"
#include "cluster_x.cuh"
#include "wgmma_slots.cuh"

// Which block a warp's rows of a tile belong to, and how many tiles' it had before.
struct Owner {
  int rank, before;
  __device__ __forceinline__ Owner(int index, int wm) {
    rank = (index * WM + wm) % PEERS, before = index / (PEERS / WM);
  }
};

__device__ __forceinline__ u32 sums_at(const Space& space, int part) { return space.base + SUMS_AT + part * PART_BYTES; }

__device__ __forceinline__ void consume(const Given& given, const Tiles& tiles, const Space& space, u8* shared, int warp,
                                        int lane) {
  constexpr int OWN = SLOTS / CREWS;
  const int wm = warp % WM, crew = warp / WM, rank = cluster_rank();
  await_x(given, tiles, space, shared, warp, lane);
  Turn turn;
  Part part;
  u32 a[2][4][4], d[BN / 2];
  for (int index = 0; tiles.at(index, part); ++index) {
#pragma unroll
    for (int i = 0; i < BN / 2; ++i) d[i] = 0;
#pragma unroll 1
    for (int slot = 0; slot < part.slots; slot += SLOTS) {
      const u32 stage = space.stage(turn.stage);
      barrier_wait(space.base + FULL_AT + turn.stage * 8, turn.parity);
#pragma unroll
      for (int own = 0; own < OWN; ++own) {
        const int u = own * CREWS + crew, group = part.eight ? (slot + u) / 2 : slot + u;
        unpack_slot(a[own % 2], part.eight, slot + u < part.slots, stage + (wm * SLOTS + u) * 1024 + lane * 16,
                    stage + SCALES_AT + (wm * SLOTS + u) * META4, lane / 4);
        // What is not there is 0, whatever it is multiplied by.
        const u64 lines = swizzled_tile(space.x() + min(group, tiles.own - 1) * space.x_pitch);
        queue(d, a[own % 2], lines + (part.eight ? (slot + u) % 2 * 4 : 0), 1);
        wgmma_wait<1>();
      }
      __syncwarp();
      if (lane == 0) barrier_arrive(space.base + EMPTY_AT + turn.stage * 8);
      turn.next(space.stages);
    }
    wgmma_wait<0>();
    settle(d);
    const Owner owner(index, wm);
    if (owner.before > 0) wait_for_peers(space.base + SUMS_EMPTY_AT + owner.rank * 8, (owner.before - 1) % 2);
    const u32 to = in_block(sums_at(space, rank * CREWS + crew) + lane * 16, owner.rank);
#pragma unroll
    for (int j = 0; j < BN / 8; ++j) store_there(to + j * 512, Words4{d[4 * j], d[4 * j + 1], d[4 * j + 2], d[4 * j + 3]});
    __syncwarp();
    if (lane == 0) arrive_there(in_block(space.base + SUMS_FULL_AT, owner.rank));
  }
}

// All that the writing warp does.
__device__ __forceinline__ void write_all(const Given& given, const Tiles& tiles, const Space& space, u8* shared, int lane) {
  const Arguments& p = product_of(given);
  const int rank = cluster_rank();
  Pair rows;
  Part part;
  // The next tile from `index` on some of whose rows are this block's; what must be known of these is asked for.
  const auto find = [&](int& index) {
    for (; tiles.at(index, part); ++index) {
      const int wm = (rank + PEERS - index * WM % PEERS) % PEERS;
      if (wm >= WM) continue;
      rows = Pair(p, part.row16 + wm, part.eight, lane / 4);
      return true;
    }
    return false;
  };
  int index = 0, turn = 0;
  bool more = find(index);
  note_all_tokens(given, space, shared, lane);
  __syncwarp();
  while (more) {
    Tile tile;
    tile.clear();
    wait_for_peers(space.base + SUMS_FULL_AT, turn % 2);
#pragma unroll 2
    for (int from = 0; from < PEERS * CREWS; ++from)
#pragma unroll
      for (int j = 0; j < BN / 8; ++j) tile.add(0, j, load_shared(sums_at(space, from) + (j * 32 + lane) * 16));
    const Pair here = rows;
    __syncwarp();
    ++index, ++turn;
    more = find(index);
    // Nobody waits behind the last.
    if (more && lane < PEERS) arrive_there(in_block(space.base + SUMS_EMPTY_AT + rank * 8, lane));
    write(tile, p, here, space.base + TABLE_AT, true, lane % 4);
  }
}

// All that the fetching lane does.
__device__ __forceinline__ void fetch_all(const Given& given, const Tiles& tiles, const Space& space) {
  const Arguments& p = product_of(given);
  Walk at(tiles);
  for (int stage = 0; stage < space.stages && at.more; ++stage) {
    fill(p, at, space, stage);
    at.step(tiles);
  }
  fetch_x(given, tiles, space);
  Turn turn;
  for (; at.more; turn.next(space.stages)) {
    barrier_wait(space.base + EMPTY_AT + turn.stage * 8, turn.parity);
    fill(p, at, space, turn.stage);
    at.step(tiles);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) __attribute__((cluster_dims(PEERS, 1, 1)))
mixed_gemm(const __grid_constant__ Given given) {
  extern __shared__ __align__(1024) u8 shared[];
  let_next_kernel_start();
  const Arguments& p = product_of(given);
  const Tiles tiles(p.shape);
  const Space space(p, tiles, shared_address(shared));
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) ring_init(space);
  prepare_x(shared);
  __syncthreads();
  cluster_arrive();
  if (warp < CONSUMERS)
    consume(given, tiles, space, shared, warp, lane);
  else if (warp == WRITER)
    write_all(given, tiles, space, shared, lane);
  else if (lane == 0)
    fetch_all(given, tiles, space);
}
