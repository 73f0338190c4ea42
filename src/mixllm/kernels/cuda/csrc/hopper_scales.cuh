// What a warpgroup needs of a stage where each group of 128 inputs has float scales.
//
// A scale a group and token: int32 lives for a group, where |sum| <= 127 * 127 * 128 < 2^21 is exact in a float;
// fma(sum s_w, s_a, before).
//
// One scale a token: both operands are UNSIGNED, x + 128 and w' (hopper_weights.cuh). So a group's integer v is none below 0, at
// most 255 * 255 * 128 < 2^23, and its bits as they stand are a float, a subnormal one: v 2^-149. No conversion, and an FMA
// is as fast on it. With W the sum of w' over the group (excess.py), X of x, and z what w' is too much:
//
//   sum of x (w' - z) = v - 128 W - z X
//
// fma(v, s, before) is all that a sum wants; the epilogue takes a row's sum of 128 s W away, and z X is a product of its own
// (hopper_floats.cuh). Of every other group w' is the complement and s negative, so that sums stay small on their way. They are
// 2^-UNIT of what they stand for.
#pragma once
#include "hopper_weights.cuh"
#include "wgmma_sums.cuh"

// A float16 scale times 2^111 is finite. A float32 one may not be: there v is converted.
constexpr bool SUBNORMAL = WEIGHT_SCALES == 1;
constexpr float UNIT = SUBNORMAL ? 0x1p-38f : 0x1p-14f, SCALE_UP = SUBNORMAL ? 0x1p111f : UNIT;

// Where a lane finds what it needs of a stage; kept, since computing it again costs as much as a load.
struct Places {
  u32 codes, affine, row_scales, token_scales;

  __device__ __forceinline__ explicit Places(const Warp16& warp) {
    const u32 meta = SCALES_AT + warp.tile * META4;
    codes = moved(X_BYTES + warp.codes + warp.lane * 16);
    affine = moved(meta + SCALE_BYTES + warp.lane / 4 * 2);
    row_scales = moved(meta + warp.lane / 4 * (WEIGHT_SCALES * 4));
    token_scales = moved(SCALES_AT + W_SCALE_BYTES + warp.lane % 4 * 8);
  }
};

// Scales of rows g and g + 8 as they are stored; 1 where they are integers in the unpacking.
struct Stored {
  u32 bits[2];

  __device__ __forceinline__ void load(u32 from) {
    if constexpr (WEIGHT_SCALES == 1) bits[0] = load_shared_u32(from);
    if constexpr (WEIGHT_SCALES == 2) load_shared_pair(from, bits[0], bits[1]);
  }
  __device__ __forceinline__ void convert(float (&s)[2]) const {
    if constexpr (WEIGHT_SCALES == 0) s[0] = s[1] = 1.0f;
    if constexpr (WEIGHT_SCALES == 1)
      s[0] = from_half_bits(static_cast<u16>(bits[0])), s[1] = from_half_bits(static_cast<u16>(bits[0] >> 16));
    if constexpr (WEIGHT_SCALES == 2) s[0] = __uint_as_float(bits[0]), s[1] = __uint_as_float(bits[1]);
  }
};

// A lane's weights and its rows' scales of the stage to come.
struct Stage16 {
  const Warp16& warp;
  const Places at;
  u32 ring, turned;
  Codes codes;
  Stored stored;

  // group: the first to come. Moved, or the compiler makes a condition of it and of each word both kinds.
  __device__ __forceinline__ Stage16(const Warp16& warp, u32 ring, int group)
      : warp(warp), at(warp), ring(ring), turned(UNSIGNED ? moved(0u - group % 2) : 0u) {}
  __device__ __forceinline__ void load(int stage) {
    const u32 scales = ring + stage * SCALE_STAGE;
    codes.load(ring + stage * STAGE_BYTES + at.codes, scales + at.affine, warp.eight);
    stored.load(scales + at.row_scales);
  }
  __device__ __forceinline__ void unpack(u32 (&a)[4][4]) const { codes.unpack<0, 2>(a, warp.eight, turned); }
  // What the stage's sums are multiplied by; the next stage is to come.
  __device__ __forceinline__ void convert(float (&s)[2]) {
    stored.convert(s);
    if constexpr (UNSIGNED) {
#pragma unroll
      for (int h = 0; h < 2; ++h) s[h] = __uint_as_float(__float_as_uint(s[h] * SCALE_UP) ^ turned & 0x80000000u);
      turned = moved(~turned);
    }
  }
  // Where the scales of a stage's tokens lie.
  __device__ __forceinline__ u32 tokens(int stage) const { return ring + stage * SCALE_STAGE + at.token_scales; }
};

// f += v s for a warp's share of 16 rows by TOKENS tokens; and s_a, if tokens have one a group.
template <int TOKENS>
__device__ __forceinline__ void add_group(float* f, const u32* v, const float (&s)[2], const float* s_a) {
  if constexpr (UNSIGNED && SUBNORMAL) {
#pragma unroll
    for (int i = 0; i < TOKENS / 2; ++i) f[i] = __fmaf_rn(__uint_as_float(v[i]), s[i % 4 / 2], f[i]);
  } else {
    add_scaled<TOKENS>(f, v, s, s_a);
  }
}
