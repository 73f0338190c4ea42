// What skinny.cu and hopper.cu share beyond their products: the type of sums, and how a group's integers become floats.
#pragma once
#include "epilogue.cuh"

template <bool INTEGERS>
struct SumOf {
  using Type = u32;
};
template <>
struct SumOf<false> {
  using Type = float;
};
using Sum = SumOf<WHOLE_SUM>::Type;

// Scales of a lane's tokens 8 j + 2 c + e at [2 j + e]; from: where in shared memory the first two lie.
template <int TOKENS>
__device__ __forceinline__ void token_scales(float (&s_a)[TOKENS / 4], u32 from) {
#pragma unroll
  for (int j = 0; j < TOKENS / 8; ++j) {
    u32 low, high;
    load_shared_pair(from + j * 32, low, high);
    s_a[2 * j] = __uint_as_float(low), s_a[2 * j + 1] = __uint_as_float(high);
  }
}

// f += d s_w s_a for a warp's share of 16 rows by TOKENS tokens. s: of rows g and g + 8; s_a: if tokens have one a group.
template <int TOKENS, typename T>
__device__ __forceinline__ void add_scaled(T* f, const u32* d, const float (&s)[2], const float* s_a = nullptr) {
#pragma unroll
  for (int i = 0; i < TOKENS / 2; ++i) {
    const float sum = static_cast<float>(static_cast<int>(d[i])), s_w = s[i % 4 / 2];
    f[i] = TOKEN_SCALES ? __fmaf_rn(sum, s_w, f[i]) : __fmaf_rn(sum * s_w, s_a[i / 4 * 2 + i % 2], f[i]);
  }
}

// The same with the tokens' scales still in shared memory.
template <int TOKENS, typename T>
__device__ __forceinline__ void add_scaled(T* f, const u32* d, const float (&s)[2], u32 x_scales) {
#pragma unroll
  for (int j = 0; j < TOKENS / 8; ++j) {
    float s_a[2] = {1.0f, 1.0f};
    if constexpr (!TOKEN_SCALES) token_scales<8>(s_a, x_scales + j * 32);
    add_scaled<8>(f + j * 4, d + j * 4, s, s_a);
  }
}
