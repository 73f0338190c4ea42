// X of strips.cu quantized by the blocks themselves: PEERS of them, a cluster, have a share of every token's groups each.
//
// They tell each other the largest values, and each writes its codes into the shared memory of all.
#pragma once
#include "activations.cuh"
#include "strips_ring.cuh"

struct Given {
  Arguments product;
  const void* x;    // [tokens][x_pitch], the first `inputs` of each row
  i64 x_pitch;      // in elements
  int inputs;
  int tail_block;   // as in quantize.cu
  float tail_norm;
  int aligned;
};
static_assert(TOKEN_SCALES && !CHUNKED, "a token's one scale wants all of it");

__device__ __forceinline__ const Arguments& product_of(const Given& given) { return given.product; }
__device__ __forceinline__ void fetch_x(const Given&, const Space&) {}
__device__ __forceinline__ void leave_chunk(const Space&, int, int, int) {}

// Of each token, by peers: the largest value's bits and the sum of codes.
struct Notes {
  u32* tops;
  int* totals;

  __device__ __forceinline__ explicit Notes(u8* shared) {
    tops = reinterpret_cast<u32*>(shared + NOTES_AT), totals = reinterpret_cast<int*>(tops + PEERS * BN);
  }
  __device__ __forceinline__ u32 top(int token) const {
    u32 top = 0;
#pragma unroll
    for (int peer = 0; peer < PEERS; ++peer) top = max(top, tops[peer * BN + token]);
    return top;
  }
  __device__ __forceinline__ int total(int token) const {
    int total = 0;
#pragma unroll
    for (int peer = 0; peer < PEERS; ++peer) total += totals[peer * BN + token];
    return total;
  }
};

// What must be there before anything is noted.
__device__ __forceinline__ void prepare_x(u8* shared) {
  const Notes notes(shared);
  for (int i = threadIdx.x; i < PEERS * BN; i += THREADS) notes.tops[i] = 0, notes.totals[i] = 0;
}

// The block's row of one of the notes to the other peers, and that all that it has written to them before is there.
__device__ __forceinline__ void tell(const u32* row, int tokens, int rank, u32 barrier, int lane) {
  for (int i = lane; i < PEERS * tokens; i += 32) {
    const int peer = i / tokens, token = i % tokens;
    if (peer != rank) store_there(in_block(shared_address(row + token), peer), row[token]);
  }
  __syncwarp();
  if (lane < PEERS && lane != rank) arrive_there(in_block(barrier, lane));
}

// One of a thread's vectors of 8 inputs. Sixteen lanes have a group; a warp's two may be different tokens'.
struct Place {
  int token, at;
  bool there;

  __device__ __forceinline__ Place(int number, int first, int own, int tokens) {
    const int group = number / 16;
    there = group < own * tokens;
    token = there ? group / own : 0;
    at = (first + group - token * own) * 128 + number % 16 * 8;
  }
};

// X into shared memory and what write() must know of it.
__device__ __forceinline__ void await_x(const Given& given, const Space& space, u8* shared, int warp, int lane) {
  constexpr int CREW = 32 * WARPS;
  const Shape& shape = given.product.shape;
  const int rank = PEERS > 1 ? static_cast<int>(cluster_rank()) : 0;
  const int each = (shape.groups + PEERS - 1) / PEERS, first = rank * each, own = max(0, min(each, shape.groups - first));
  const Notes notes(shared);
  u32* own_tops = notes.tops + rank * BN;
  int* own_totals = notes.totals + rank * BN;
  const auto place = [&](int k) { return Place(k * CREW + threadIdx.x, first, own, shape.tokens); };
  const auto row = [&](const Place& at) { return static_cast<const u8*>(given.x) + at.token * given.x_pitch * INPUT_BYTES; };

  float v[VECTORS][8];
  if (given.aligned) {
    Raw raw[VECTORS];
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
      const Place at = place(k);
      raw[k] = load_raw(row(at), at.at, at.there ? given.inputs : 0);
    }
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) to_floats(raw[k], v[k]);
  } else {
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
      const Place at = place(k);
      load_one_by_one(row(at), at.at, at.there ? given.inputs : 0, v[k]);
    }
  }
#pragma unroll
  for (int k = 0; k < VECTORS; ++k) {
    const Place at = place(k);
    if constexpr (ROTATE) {
      const bool tail = TAIL && at.at >= given.inputs / 128 * 128;
      rotate(v[k], tail ? given.tail_block : 128, tail ? given.tail_norm : NORM_128);
    }
    u32 top = top_bits(v[k]);
#pragma unroll
    for (int other = 1; other < 16; other *= 2) top = max(top, __shfl_xor_sync(0xFFFFFFFFu, top, other));
    if (lane % 16 == 0 && at.there) atomicMax(own_tops + at.token, top);
  }
  if constexpr (PEERS > 1) cluster_wait();  // the others have begun
  named_barrier<CREW>(1);
  if constexpr (PEERS > 1) {
    if (warp == 0) tell(own_tops, shape.tokens, rank, space.base + TOPS_FULL_AT, lane);
    wait_for_peers(space.base + TOPS_FULL_AT, 0);
  }
#pragma unroll
  for (int k = 0; k < VECTORS; ++k) {
    const Place at = place(k);
    u32 packed[2] = {0, 0};
    if (at.there) {
      round_to_codes(v[k], scale_of(notes.top(at.token)), packed);
      const u64 codes = packed[0] | static_cast<u64>(packed[1]) << 32;
      const u32 to = X_AT + at.token * space.x_pitch + at.at;
      *reinterpret_cast<u64*>(shared + to) = codes;
#pragma unroll
      for (int other = 1; other < PEERS; ++other) store_there(in_block(space.base + to, (rank + other) % PEERS), codes);
    }
    int sum = __dp4a(static_cast<int>(packed[0]), static_cast<int>(ONES), 0);
    sum = __dp4a(static_cast<int>(packed[1]), static_cast<int>(ONES), sum);
#pragma unroll
    for (int other = 1; other < 16; other *= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, other);
    if (lane % 16 == 0 && at.there) atomicAdd(own_totals + at.token, sum);
  }
  named_barrier<CREW>(1);
  if constexpr (PEERS > 1) {
    if (warp == 0) tell(reinterpret_cast<const u32*>(own_totals), shape.tokens, rank, space.base + X_FULL_AT, lane);
    wait_for_peers(space.base + X_FULL_AT, 0);
  }
  if (threadIdx.x < shape.tokens) {
    const float scale = scale_of(notes.top(threadIdx.x)).value;
    store_shared_pair(space.base + TABLE_AT + threadIdx.x * 8, __float_as_uint(scale), notes.total(threadIdx.x) * 128);
  }
}
