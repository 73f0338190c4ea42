// A block's part of X for cluster.cu: its groups as they come quantized, or quantized here.
#pragma once
#include "cluster_ring.cuh"

#if QUANTIZE
#include "fresh.cuh"

__device__ __forceinline__ const Arguments& product_of(const Given& given) { return given.product; }
__device__ __forceinline__ void prepare_x(u8* shared) { Notes(shared + NOTES_AT).clear(THREADS); }
__device__ __forceinline__ void fetch_x(const Given&, const Tiles&, const Space&) {}

__device__ __forceinline__ void await_x(const Given& given, const Tiles& tiles, const Space& space, u8* shared, int warp, int lane) {
  constexpr int CREW = 32 * CONSUMERS;
  const int rank = cluster_rank();
  const Notes notes(shared + NOTES_AT);
  wait_for_earlier_kernels();
  quantize_own<CREW>(given, notes, rank, tiles.first, tiles.own, space.base + TOPS_FULL_AT,
                     [&](const Place& at, const u32 (&packed)[2]) {
                       const int group = at.at / 128 - tiles.first;
                       i8* line = reinterpret_cast<i8*>(shared + X_AT) + group * space.x_pitch + at.token * 128;
                       place_in_line(line, at.token, packed, at.there);
                     });
  seen_by_tensor_cores();
  named_barrier<CREW>(1);
  // The writing warps of all peers wait for the sums of codes.
  if (warp == 0) {
    tell(reinterpret_cast<u32*>(notes.totals + rank * BN), given.product.shape.tokens, rank, space.base + X_FULL_AT, lane);
    if (lane == 0) barrier_arrive(space.base + X_FULL_AT);
  }
}

__device__ __forceinline__ void note_all_tokens(const Given& given, const Space& space, u8* shared, int lane) {
  const Notes notes(shared + NOTES_AT);
  wait_for_earlier_kernels();
  wait_for_peers(space.base + X_FULL_AT, 0);
  for (int token = lane; token < given.product.shape.tokens; token += 32) notes.note(space.base + TABLE_AT, token);
}
#else
using Given = Arguments;

__device__ __forceinline__ const Arguments& product_of(const Given& given) { return given; }
__device__ __forceinline__ void prepare_x(u8*) {}

// The block's groups of X: one piece where tokens are whole eights.
__device__ __forceinline__ void fetch_x(const Arguments& p, const Tiles& tiles, const Space& space) {
  const u32 full = space.base + X_FULL_AT;
  const int line = p.shape.tokens * 128;
  const i8* from = p.x + static_cast<i64>(tiles.first) * line;
  wait_for_earlier_kernels();
  barrier_expect(full, tiles.own * line);
  if (line == space.x_pitch) {
    if (tiles.own > 0) copy_bulk(space.x(), from, tiles.own * line, full);
  } else {
    for (int group = 0; group < tiles.own; ++group)
      copy_bulk(space.x() + group * space.x_pitch, from + static_cast<i64>(group) * line, line, full);
  }
}

__device__ __forceinline__ void await_x(const Given&, const Tiles&, const Space& space, u8*, int, int) {
  cluster_wait();
  barrier_wait(space.base + X_FULL_AT, 0);
}

__device__ __forceinline__ void note_all_tokens(const Given& p, const Space& space, u8*, int lane) {
  wait_for_earlier_kernels();
  note_tokens<32>(p, space.base + TABLE_AT, lane);
}
#endif
