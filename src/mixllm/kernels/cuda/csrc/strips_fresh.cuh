// X of strips.cu quantized by each block for its own use, WARPS / QUANTIZE warps a token.
#pragma once
#include "activations.cuh"
#include "strips_ring.cuh"

static_assert(!CHUNKED && PEERS == 1, "a token's scale wants all of it, and it is a block's own");

struct Given {
  Arguments product;
  const void* x;    // [tokens][x_pitch], the first `inputs` of each row
  i64 x_pitch;      // in elements
  int inputs;
  int tail_block;   // as in quantize.cu
  float tail_norm;
  int aligned;
};

__device__ __forceinline__ const Arguments& product_of(const Given& given) { return given.product; }
__device__ __forceinline__ void fetch_x(const Given&, const Strips&, const Space&) {}

// X into shared memory and what write() must know of it, by WARPS / QUANTIZE warps a token.
__device__ __forceinline__ void await_x(const Given& given, const Space& space, u8* shared, int warp, int lane) {
  constexpr int SHARERS = WARPS / QUANTIZE, EACH = 32 * SHARERS;
  static_assert(WARPS % QUANTIZE == 0 && QUANTIZE <= BN && TOKEN_SCALES, "whole warps for a token's one scale");
  const Shape& shape = given.product.shape;
  const int token = warp / SHARERS, thread = threadIdx.x % EACH;
  const bool there = token < shape.tokens;
  u32* tops = reinterpret_cast<u32*>(shared + TOPS_AT);
  int* totals = reinterpret_cast<int*>(tops + WARPS);
  const auto top_of = [&](int token) {
    u32 top = 0;
    for (int sharer = 0; sharer < SHARERS; ++sharer) top = max(top, tops[token * SHARERS + sharer]);
    return top;
  };
  float v[VECTORS][8];
  u32 top = 0;
  if (there) {
    load(given, static_cast<const u8*>(given.x) + token * given.x_pitch * INPUT_BYTES, 0, thread, EACH, v);
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
      if constexpr (ROTATE) {
        const bool tail = TAIL && (k * EACH + thread) * 8 >= given.inputs / 128 * 128;
        rotate(v[k], tail ? given.tail_block : 128, tail ? given.tail_norm : NORM_128);
      }
      top = max(top, top_bits(v[k]));
    }
  }
  top = __reduce_max_sync(0xFFFFFFFFu, top);
  if (lane == 0) tops[warp] = top;
  named_barrier<32 * WARPS>(1);
  const Scale scale = scale_of(top_of(token));
  int sum = 0;
  if (there) {
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
      const int at = (k * EACH + thread) * 8;
      if (at >= shape.groups * 128) continue;
      u32 packed[2];
      round_to_codes(v[k], scale, packed);
      *reinterpret_cast<u64*>(shared + X_AT + token * space.x_pitch + at) = packed[0] | static_cast<u64>(packed[1]) << 32;
      sum = __dp4a(static_cast<int>(packed[0]), static_cast<int>(ONES), sum);
      sum = __dp4a(static_cast<int>(packed[1]), static_cast<int>(ONES), sum);
    }
  }
  sum = __reduce_add_sync(0xFFFFFFFFu, sum);
  if (lane == 0) totals[warp] = sum;
  named_barrier<32 * WARPS>(1);
  if (threadIdx.x < QUANTIZE && threadIdx.x < shape.tokens) {
    int total = 0;
    for (int sharer = 0; sharer < SHARERS; ++sharer) total += totals[threadIdx.x * SHARERS + sharer];
    const float its = scale_of(top_of(threadIdx.x)).value;
    store_shared_pair(space.base + TABLE_AT + threadIdx.x * 8, __float_as_uint(its), total * 128);
  }
}
