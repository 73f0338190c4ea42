// One slot of K into a warp's accumulators.
//
// Scales of 16 rows and one group, g = 0..7 and h = 0, 1 for row g + 8 h; both rows of a lane lie together:
//   WEIGHT_SCALES 0   4 bit: u8 [g][h] = m - 1 | z << 4                           8 bit: nothing
//                 1   4 bit: float16 [g][h] then u8 zero [g][h]                   8 bit: float16 [g][h]
//                 2   4 bit: float32 [g][h] then u8 zero [g][h]                   8 bit: float32 [g][h]
#pragma once
#include "unpack.cuh"

constexpr int SCALE_BYTES = WEIGHT_SCALES == 0 ? 0 : WEIGHT_SCALES == 1 ? 32 : 64;
constexpr int META4 = 16 + SCALE_BYTES, META8 = SCALE_BYTES;
constexpr bool WHOLE_SUM = WEIGHT_SCALES == 0 && TOKEN_SCALES;

// An int32 that starts here reads as the float 12582912 + sum while |sum| < 2^22: converting it is one subtraction.
constexpr int MAGIC_BITS = 0x4B400000;
constexpr float MAGIC = 12582912.0f;

template <int MI, int NJ>
struct Accumulators {
  int v[MI][NJ][4];  // int32 sums, or the bits of float32 ones

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < MI; ++i)
#pragma unroll
      for (int j = 0; j < NJ; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) v[i][j][e] = 0;
  }

  __device__ __forceinline__ static int plus(int a, int b) {
    return WHOLE_SUM ? a + b : __float_as_int(__int_as_float(a) + __int_as_float(b));
  }

  __device__ __forceinline__ void add(int i, int j, Words4 b) {
    v[i][j][0] = plus(v[i][j][0], b.x), v[i][j][1] = plus(v[i][j][1], b.y);
    v[i][j][2] = plus(v[i][j][2], b.z), v[i][j][3] = plus(v[i][j][3], b.w);
  }

  __device__ __forceinline__ Words4 words(int i, int j) const {
    return {static_cast<u32>(v[i][j][0]), static_cast<u32>(v[i][j][1]), static_cast<u32>(v[i][j][2]),
            static_cast<u32>(v[i][j][3])};
  }
};

struct RowScales {
  float s[2], minus_magic_s[2];
};

__device__ __forceinline__ RowScales row_scales(u32 address, int g) {
  RowScales r;
  if constexpr (WEIGHT_SCALES == 0) {
    r.s[0] = r.s[1] = 1.0f;
  } else if constexpr (WEIGHT_SCALES == 1) {
    const u32 both = load_shared_u32(address + g * 4);
    r.s[0] = from_half_bits(static_cast<u16>(both)), r.s[1] = from_half_bits(static_cast<u16>(both >> 16));
  } else {
    r.s[0] = __uint_as_float(load_shared_u32(address + g * 8));
    r.s[1] = __uint_as_float(load_shared_u32(address + g * 8 + 4));
  }
  // Exact where s has float16's 11 bits: MAGIC is 3 * 2^22.
  r.minus_magic_s[0] = -MAGIC * r.s[0], r.minus_magic_s[1] = -MAGIC * r.s[1];
  return r;
}

// (bits of MAGIC + sum) -> sum * s with one rounding.
__device__ __forceinline__ float rescale(int bits, float s, float minus_magic_s) {
  const float v = __int_as_float(bits);
  return WEIGHT_SCALES == 2 ? (v - MAGIC) * s : __fmaf_rn(v, s, minus_magic_s);
}

// Two products of 32 inputs for one 16-row tile and the lane's activations b of NJ times 8 tokens.
template <bool UNSIGNED_A, int MI, int NJ>
__device__ __forceinline__ void multiply(Accumulators<MI, NJ>& tile, int i, const u32 (&a)[2][4], const Words4 (&b)[NJ]) {
#pragma unroll
  for (int j = 0; j < NJ; ++j) mma<UNSIGNED_A>(tile.v[i][j], a[0], b[j].x, b[j].y);
#pragma unroll
  for (int j = 0; j < NJ; ++j) mma<UNSIGNED_A>(tile.v[i][j], a[1], b[j].z, b[j].w);
}

// w and w_scales: shared addresses of the lane's codes and of the tile's scales, w_pitch and scale_pitch bytes from one
// 16-row tile to the next. x(panel, j): the lane's sixteen activations of 64 inputs and 8 tokens. x_scale(j, e): the
// scale of token 8 j + 2 (lane % 4) + e.
// between(): what else the warp has to do, in the shade of the tensor cores' work. APART: where a warp has little to do beside,
// each panel has a sum of its own, so that the chain of products is half as long.
template <bool EIGHT, bool APART = false, int MI, int NJ, typename X, typename XScale, typename Between>
__device__ __forceinline__ void accumulate(Accumulators<MI, NJ>& tile, u32 w, int w_pitch, u32 w_scales,
                                           int scale_pitch, X x, XScale x_scale, Between between, int lane) {
  constexpr int PANELS = EIGHT ? 1 : 2;  // of 64 inputs
  const int g = lane / 4;

  if constexpr (WHOLE_SUM) {
    // Unsigned bytes spare an XOR: the epilogue takes 128 * sum of x away.
#pragma unroll
    for (int panel = 0; panel < PANELS; ++panel) {
      Words4 b[NJ];
#pragma unroll
      for (int j = 0; j < NJ; ++j) b[j] = x(panel, j);
#pragma unroll
      for (int i = 0; i < MI; ++i) {
        u32 a[2][4];
        if constexpr (EIGHT) {
          unpack8(load_shared(w + i * w_pitch), load_shared(w + i * w_pitch + 512), a);
        } else {
          const u32 both = load_shared_u16(w_scales + i * scale_pitch + g * 2);
          unpack4<false>(load_shared(w + i * w_pitch + panel * 512), integer_scale(both & 255u), integer_scale(both >> 8), a);
        }
        multiply<!EIGHT>(tile, i, a, b);
        if (panel == 0 && i == 0) between();
      }
    }
  } else {
    u32 a[MI][PANELS][2][4];
    RowScales scales[MI];
#pragma unroll
    for (int i = 0; i < MI; ++i) {
      const u32 meta = w_scales + i * scale_pitch;
      scales[i] = row_scales(meta, g);
      if constexpr (EIGHT) {
        unpack8(load_shared(w + i * w_pitch), load_shared(w + i * w_pitch + 512), a[i][0]);
      } else {
        const u32 both = load_shared_u16(meta + SCALE_BYTES + g * 2);
        const Affine low = WEIGHT_SCALES == 0 ? integer_scale(both & 255u) : zero_only(both & 255u);
        const Affine high = WEIGHT_SCALES == 0 ? integer_scale(both >> 8) : zero_only(both >> 8);
#pragma unroll
        for (int panel = 0; panel < PANELS; ++panel)
          unpack4<true>(load_shared(w + i * w_pitch + panel * 512), low, high, a[i][panel]);
      }
    }
#pragma unroll
    for (int j = 0; j < NJ; ++j) {
      Words4 b[PANELS];
#pragma unroll
      for (int panel = 0; panel < PANELS; ++panel) b[panel] = x(panel, j);
      if (j == 1 || NJ == 1) between();
      float s_a[2] = {1.0f, 1.0f};
      if constexpr (!TOKEN_SCALES) {
        s_a[0] = x_scale(j, 0), s_a[1] = x_scale(j, 1);
      }
#pragma unroll
      for (int i = 0; i < MI; ++i) {
        constexpr int SUMS = APART ? PANELS : 1;
        int sums[SUMS][4] = {};
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[0][e] = MAGIC_BITS;
#pragma unroll
        for (int n = 0; n < 2 * PANELS; ++n) {
          const int panel = SUMS == 1 ? n / 2 : n % PANELS, step = SUMS == 1 ? n % 2 : n / PANELS;
          const Words4& v = b[panel];
          mma<false>(sums[panel % SUMS], a[i][panel][step], step == 0 ? v.x : v.z, step == 0 ? v.y : v.w);
        }
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int sum = SUMS == 2 ? sums[0][e] + sums[SUMS - 1][e] : sums[0][e];
          const float value = rescale(sum, scales[i].s[e / 2], scales[i].minus_magic_s[e / 2]);
          const float before = __int_as_float(tile.v[i][j][e]);
          tile.v[i][j][e] = __float_as_int(TOKEN_SCALES ? before + value : __fmaf_rn(value, s_a[e % 2], before));
        }
      }
    }
  }
}
