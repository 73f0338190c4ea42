// What a warpgroup needs of a stage where each group of 128 inputs has float scales.
//
// int32 lives for a group, where |sum| <= 127 * 127 * 128 < 2^21 is exact in a float; fma(sum s_w, s_a, before), or with
// one activation scale a token fma(sum, s_w, before).
#pragma once
#include "hopper_weights.cuh"
#include "wgmma_sums.cuh"

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
  u32 ring;
  Codes codes;
  Stored stored;

  __device__ __forceinline__ Stage16(const Warp16& warp, u32 ring) : warp(warp), at(warp), ring(ring) {}
  __device__ __forceinline__ void load(int stage) {
    const u32 scales = ring + stage * SCALE_STAGE;
    codes.load(ring + stage * STAGE_BYTES + at.codes, scales + at.affine, warp.eight);
    stored.load(scales + at.row_scales);
  }
  __device__ __forceinline__ void unpack(u32 (&a)[4][4]) const { codes.unpack<true, 0, 2>(a, warp.eight); }
  // Where the scales of a stage's tokens lie.
  __device__ __forceinline__ u32 tokens(int stage) const { return ring + stage * SCALE_STAGE + at.token_scales; }
};
