// Weights from shared memory to the registers of mma.m16n8k32's A operand.
//
// In that operand lane 4 g + c holds four words of four inputs: rows g and g + 8, then both again 16 inputs
// on. A product may take its inputs in any order that W and X share, so a lane's share of 64 inputs is
// simply inputs 16 c .. 16 c + 15 in a row: X needs no shuffling and is read 16 bytes a lane.
//
//   4 bit, 16 rows x 64 inputs = 512 bytes, lane's 16 bytes = words (j, h), j = product 0 / 1, h = row g / g + 8:
//       byte i of word (j, h) = input 16 c + 8 j + i in the low nibble, 16 c + 8 j + 4 + i in the high one
//   8 bit, 16 rows x 64 inputs = 1024 bytes: rows 0..7, then rows 8..15, each 64 bytes in order
#pragma once
#include "ptx.cuh"

constexpr u32 NIBBLES = 0x0F0F0F0Fu;

// What a group of a row adds to its codes: byte = code * m + (128 - m z), 0..255, for four codes at once
// since no byte carries. As an unsigned byte it is 128 above m (code - z).
struct Affine {
  u32 m, c;
};

// One byte holds m - 1 in its low and z in its high nibble.
__device__ __forceinline__ Affine integer_scale(u32 packed) {
  const u32 m = (packed & 15u) + 1u;
  return {m, SIGNS - m * (packed >> 4) * ONES};
}

__device__ __forceinline__ Affine zero_only(u32 zero) { return {1u, SIGNS - zero * ONES}; }

template <bool SIGNED>
__device__ __forceinline__ u32 affine(u32 codes, Affine s) {
  const u32 bytes = codes * s.m + s.c;
  return SIGNED ? bytes ^ SIGNS : bytes;
}

// The codes as they are. turned: all ones for 15 - code.
__device__ __forceinline__ void nibbles(Words4 v, u32 turned, u32 (&a)[2][4]) {
  const u32 words[4] = {v.x, v.y, v.z, v.w}, mask = turned & NIBBLES;
#pragma unroll
  for (int i = 0; i < 4; ++i)
    a[i / 2][i % 2] = (words[i] & NIBBLES) ^ mask, a[i / 2][i % 2 + 2] = (words[i] >> 4 & NIBBLES) ^ mask;
}

// Four words of a lane -> the A operands of two products (inputs 8 j .. 8 j + 7 of the lane's sixteen).
template <bool SIGNED>
__device__ __forceinline__ void unpack4(Words4 v, Affine low, Affine high, u32 (&a)[2][4]) {
  const u32 words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    a[j][0] = affine<SIGNED>(words[2 * j] & NIBBLES, low);
    a[j][1] = affine<SIGNED>(words[2 * j + 1] & NIBBLES, high);
    a[j][2] = affine<SIGNED>(words[2 * j] >> 4 & NIBBLES, low);
    a[j][3] = affine<SIGNED>(words[2 * j + 1] >> 4 & NIBBLES, high);
  }
}

__device__ __forceinline__ void unpack8(Words4 low, Words4 high, u32 (&a)[2][4]) {
  a[0][0] = low.x, a[0][1] = high.x, a[0][2] = low.y, a[0][3] = high.y;
  a[1][0] = low.z, a[1][1] = high.z, a[1][2] = low.w, a[1][3] = high.w;
}
