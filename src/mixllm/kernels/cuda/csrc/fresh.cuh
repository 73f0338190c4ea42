// X quantized by the blocks of a product themselves: PEERS of them, a cluster, have a share of every token's groups each.
//
// VECTORS of 8 inputs a thread, CREW threads; INPUT, ROTATE and TAIL as in quantize.cu. They tell each other the largest
// values and the sums of codes.
#pragma once
#include "activations.cuh"
#include "direct.cuh"

struct Given {
  Arguments product;
  const void* x;    // [tokens][x_pitch], the first `inputs` of each row
  i64 x_pitch;      // in elements
  int inputs;
  int tail_block;   // as in quantize.cu
  float tail_norm;
  int aligned;
};
static_assert(TOKEN_SCALES, "a token has one scale");

// Of each token, by peers: the largest value's bits and the sum of codes.
struct Notes {
  u32* tops;
  int* totals;

  // at: where in the block's shared memory 8 PEERS BN bytes are for them.
  __device__ __forceinline__ explicit Notes(u8* at) {
    tops = reinterpret_cast<u32*>(at), totals = reinterpret_cast<int*>(tops + PEERS * BN);
  }
  __device__ __forceinline__ void clear(int threads) const {
    for (int i = threadIdx.x; i < PEERS * BN; i += threads) tops[i] = 0, totals[i] = 0;
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

  // What write() must know of a token, once all is told.
  __device__ __forceinline__ void note(u32 table, int token) const {
    store_shared_pair(table + token * 8, __float_as_uint(scale_of(top(token)).value), total(token) * 128);
  }
};

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

// The block's share of X, its groups first .. first + own - 1: put(place, packed) has the codes of eight inputs, sixteen lanes
// those of a group, and is called by all. Then the sums of codes are in notes.totals for all of the CREW to tell. tops_told: a barrier for the
// other peers' arrivals.
template <int CREW, typename Put>
__device__ __forceinline__ void quantize_own(const Given& given, const Notes& notes, int rank, int first, int own, u32 tops_told,
                                             Put put) {
  const int tokens = given.product.shape.tokens, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  u32* own_tops = notes.tops + rank * BN;
  int* own_totals = notes.totals + rank * BN;
  const auto place = [&](int k) { return Place(k * CREW + threadIdx.x, first, own, tokens); };
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
    if (warp == 0) tell(own_tops, tokens, rank, tops_told, lane);
    wait_for_peers(tops_told, 0);
  }
#pragma unroll
  for (int k = 0; k < VECTORS; ++k) {
    const Place at = place(k);
    u32 packed[2] = {0, 0};
    if (at.there) round_to_codes(v[k], scale_of(notes.top(at.token)), packed);
    put(at, packed);
    int sum = __dp4a(static_cast<int>(packed[0]), static_cast<int>(ONES), 0);
    sum = __dp4a(static_cast<int>(packed[1]), static_cast<int>(ONES), sum);
#pragma unroll
    for (int other = 1; other < 16; other *= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, other);
    if (lane % 16 == 0 && at.there) atomicAdd(own_totals + at.token, sum);
  }
}
