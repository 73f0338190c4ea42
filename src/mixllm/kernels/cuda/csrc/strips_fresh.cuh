// X of strips.cu quantized by the blocks themselves, each of which writes its codes into the shared memory of all.
#pragma once
#include "fresh.cuh"
#include "strips_ring.cuh"

static_assert(!CHUNKED, "a token's one scale wants all of it");

__device__ __forceinline__ const Arguments& product_of(const Given& given) { return given.product; }
__device__ __forceinline__ void fetch_x(const Given&, const Space&) {}
__device__ __forceinline__ void leave_chunk(const Space&, int, int, int) {}

// What must be there before anything is noted.
__device__ __forceinline__ void prepare_x(u8* shared) { Notes(shared + NOTES_AT).clear(THREADS); }

// X into shared memory and what write() must know of it.
__device__ __forceinline__ void await_x(const Given& given, const Space& space, u8* shared, int warp, int lane) {
  constexpr int CREW = 32 * WARPS;
  const Shape& shape = given.product.shape;
  const int rank = PEERS > 1 ? static_cast<int>(cluster_rank()) : 0;
  const int each = (shape.groups + PEERS - 1) / PEERS, first = rank * each, own = max(0, min(each, shape.groups - first));
  const Notes notes(shared + NOTES_AT);
  quantize_own<CREW>(given, notes, rank, first, own, space.base + TOPS_FULL_AT, [&](const Place& at, const u32 (&packed)[2]) {
    if (!at.there) return;
    const u64 codes = packed[0] | static_cast<u64>(packed[1]) << 32;
    const u32 to = X_AT + at.token * space.x_pitch + at.at;
    *reinterpret_cast<u64*>(shared + to) = codes;
#pragma unroll
    for (int other = 1; other < PEERS; ++other) store_there(in_block(space.base + to, (rank + other) % PEERS), codes);
  });
  named_barrier<CREW>(1);
  if constexpr (PEERS > 1) {
    if (warp == 0) tell(reinterpret_cast<u32*>(notes.totals + rank * BN), shape.tokens, rank, space.base + X_FULL_AT, lane);
    wait_for_peers(space.base + X_FULL_AT, 0);
  }
  if (threadIdx.x < shape.tokens) notes.note(space.base + TABLE_AT, threadIdx.x);
}
