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

// f += d s_w s_a for a warp's share of 16 rows by TOKENS tokens. s: of rows g and g + 8; x_scales: where in shared memory the
// scales of this lane's first two tokens lie, if tokens have one a group.
template <int TOKENS, typename T>
__device__ __forceinline__ void add_scaled(T* f, const u32* d, const float (&s)[2], u32 x_scales) {
#pragma unroll
  for (int j = 0; j < TOKENS / 8; ++j) {
    float s_a[2] = {1.0f, 1.0f};
    if constexpr (!TOKEN_SCALES) {
      u32 low, high;
      load_shared_pair(x_scales + j * 32, low, high);
      s_a[0] = __uint_as_float(low), s_a[1] = __uint_as_float(high);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float sum = static_cast<float>(static_cast<int>(d[j * 4 + i]));
      T& to = f[j * 4 + i];
      to = TOKEN_SCALES ? __fmaf_rn(sum, s[i / 2], to) : __fmaf_rn(sum * s[i / 2], s_a[i % 2], to);
    }
  }
}
