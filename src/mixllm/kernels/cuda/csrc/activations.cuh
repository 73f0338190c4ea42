// Activations to int8, a thread's vectors of 8 inputs: what quantize.cu does to memory and strips.cu to its own copy.
//
// INPUT: 0 float16, 1 bfloat16, 2 float32. TAIL 1: inputs % 128 is not 0, so the last block of the rotation is shorter.
#pragma once
#include "ptx.cuh"

constexpr float NORM_128 = 0.08838834764831845f;  // 128 ** -0.5
constexpr u32 LEAST_SCALE = 0x00800000u;          // 2 ** -126
constexpr u32 INFINITE = 0x7F800000u;
// Adding it rounds a float below 2^22 to the nearest integer, ties to even, and leaves that in the low bits.
constexpr float ROUNDER = 12582912.0f;

__device__ __forceinline__ float element(const void* row, int i) {
  if constexpr (INPUT == 2) return static_cast<const float*>(row)[i];
  const u16 bits = static_cast<const u16*>(row)[i];
  return INPUT == 0 ? from_half_bits(bits) : from_bfloat_bits(bits);
}

// Eight inputs as they lie in memory, and as numbers.
constexpr int PIECES = INPUT == 2 ? 2 : 1, INPUT_BYTES = INPUT == 2 ? 4 : 2;
struct Raw {
  Words4 piece[PIECES];
};

// Inputs at .. at + 7 of a row on 16 bytes that is whole vectors; zeros behind its end.
__device__ __forceinline__ Raw load_raw(const void* row, int at, int inputs) {
  Raw raw;
#pragma unroll
  for (int i = 0; i < PIECES; ++i) {
    raw.piece[i] = {0, 0, 0, 0};
    if (at < inputs) raw.piece[i] = load_l2(static_cast<const u8*>(row) + at * INPUT_BYTES + i * 16);
  }
  return raw;
}

__device__ __forceinline__ void to_floats(const Raw& raw, float (&v)[8]) {
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    const Words4& piece = raw.piece[e * PIECES / 8];
    const u32 words[4] = {piece.x, piece.y, piece.z, piece.w};
    if constexpr (INPUT == 2) {
      v[e] = __uint_as_float(words[e % 4]);
    } else {
      const u16 bits = static_cast<u16>(words[e / 2] >> (e % 2 * 16));
      v[e] = INPUT == 0 ? from_half_bits(bits) : from_bfloat_bits(bits);
    }
  }
}

// The same from any row.
__device__ __forceinline__ void load_one_by_one(const void* row, int at, int inputs, float (&v)[8]) {
#pragma unroll
  for (int e = 0; e < 8; ++e) v[e] = at + e < inputs ? element(row, at + e) : 0.0f;
}

// The values of COUNT vectors: vector k of `threads` there is inputs start + 8 (k * threads + thread) .. of a row. All of a
// thread's loads are on their way before the first is looked at.
template <int COUNT, typename Source>
__device__ __forceinline__ void load(const Source& p, const void* row, int start, int thread, int threads, float (&v)[COUNT][8]) {
  if (p.aligned) {
    Raw raw[COUNT];
#pragma unroll
    for (int k = 0; k < COUNT; ++k) raw[k] = load_raw(row, start + (k * threads + thread) * 8, p.inputs);
#pragma unroll
    for (int k = 0; k < COUNT; ++k) to_floats(raw[k], v[k]);
  } else {
#pragma unroll
    for (int k = 0; k < COUNT; ++k) load_one_by_one(row, start + (k * threads + thread) * 8, p.inputs, v[k]);
  }
}

__device__ __forceinline__ void butterfly(float& a, float& b) {
  const float sum = __fadd_rn(a, b), difference = __fsub_rn(a, b);
  a = sum, b = difference;
}

// Butterflies over strides 1, 2, 4 in registers and 8 .. 64 between the sixteen lanes of a block: a + b, a - b in
// float32, then one multiplication. Where the last block is narrower its lanes take part but keep their values.
__device__ __forceinline__ void rotate(float (&v)[8], int block, float norm) {
#pragma unroll
  for (int stride = 1; stride < 8; stride *= 2) {
    if (TAIL && stride >= block) break;
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      if (e & stride) continue;
      butterfly(v[e], v[e + stride]);
    }
  }
#pragma unroll
  for (int stride = 8; stride < 128; stride *= 2) {
    // v * (+-1) + other is the sum or difference with its one rounding, in one instruction.
    const float sign = threadIdx.x & (stride / 8) ? -1.0f : 1.0f;
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const float turned = __fmaf_rn(v[e], sign, __shfl_xor_sync(0xFFFFFFFFu, v[e], stride / 8));
      v[e] = TAIL && stride >= block ? v[e] : turned;
    }
  }
#pragma unroll
  for (int e = 0; e < 8; ++e) v[e] = __fmul_rn(v[e], norm);
}

// The bits of the largest |v|. A NaN wins, and as integers the bits of positive floats are ordered as they are,
// with infinity and NaN on top: further maxima may be integer ones.
__device__ __forceinline__ u32 top_bits(const float (&v)[8]) {
  float top = 0.0f;
#pragma unroll
  for (int e = 0; e < 8; ++e) top = max_or_nan(top, fabsf(v[e]));
  return __float_as_uint(top);
}

struct Scale {
  float value;
  float below, above;  // of 1 / value, by more than what it and a product with it are rounded by
  bool empty;          // all codes are zero
};

__device__ __forceinline__ Scale scale_of(u32 top) {
  const float s = __fdiv_rn(__uint_as_float(top), 127.0f);
  if (top >= INFINITE) return {__uint_as_float(0x7FC00000u), 0.0f, 0.0f, true};
  if (__float_as_uint(s) < LEAST_SCALE) return {1.0f, 0.0f, 0.0f, true};
  const float inverse = __frcp_rn(s);
  return {s, inverse * (1.0f - 0x1p-22f), inverse * (1.0f + 0x1p-22f), false};
}

// The slow way, out of line: it is taken about once in a thousand times.
__device__ __noinline__ u32 divided(float v, float s) {
  return __float_as_uint(__fadd_rn(fminf(fmaxf(__fdiv_rn(v, s), -127.0f), 127.0f), ROUNDER));
}

// Four codes in the low bytes of four words.
__device__ __forceinline__ u32 low_four(const u32* bits) {
  const u32 low = __byte_perm(bits[0], bits[1], 0x0040), high = __byte_perm(bits[2], bits[3], 0x0040);
  return __byte_perm(low, high, 0x5410);
}

// round(v / s) for eight values. v / s lies between v times two numbers a little below and above 1 / s; where these round to
// the same integer, that is it. Else, seldom, the division is done.
__device__ __forceinline__ void round_to_codes(const float (&v)[8], const Scale& s, u32 (&packed)[2]) {
  packed[0] = packed[1] = 0;
  if (s.empty) return;
  u32 low[8], high[8];
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    low[e] = __float_as_uint(__fmaf_rn(v[e], s.below, ROUNDER));
    high[e] = __float_as_uint(__fmaf_rn(v[e], s.above, ROUNDER));
  }
  packed[0] = low_four(low), packed[1] = low_four(low + 4);
  if (packed[0] == low_four(high) && packed[1] == low_four(high + 4)) return;
#pragma unroll
  for (int e = 0; e < 8; ++e) low[e] = divided(v[e], s.value);
  packed[0] = low_four(low), packed[1] = low_four(low + 4);
}

// Writes the codes of inputs at .. at + 7 as hopper.cu wants them: [groups][tokens][128] in lines that its copies take as
// they are. wgmma has its own order of inputs, in which the lane that unpack.cuh gives 16 c .. 16 c + 15 of
// 64 has 16 (2 j + r) + 4 c + i; and the 16-byte pieces of a line are swizzled. Lanes trade a word so as to write eight
// bytes; sixteen neighbours are here together.
__device__ __forceinline__ void place_tiled(i8* codes, int tokens, int token, int at, const u32 (&packed)[2]) {
  // Sixteen threads have a line, whatever the round.
  const int lane = threadIdx.x % 32, c = lane / 2 % 4, r = c % 2, piece = lane / 8 % 2 * 4 + lane % 2 * 2 + r;
  const u32 other = __shfl_xor_sync(0xFFFFu << (lane & 16), packed[1 - r], 2);
  const u32 low = r == 0 ? packed[0] : other, high = r == 0 ? other : packed[1];
  i8* line = codes + (static_cast<i64>(at / 128) * tokens + token) * 128;
  *reinterpret_cast<u64*>(line + (piece ^ token % 8) * 16 + c / 2 * 8) = low | static_cast<u64>(high) << 32;
}

// Behind the codes: for each 16 groups a line of bfloat16s a token, for hopper_floats.cuh. `sum` is the sum of a group's codes.
// The last group's thread clears what the last line has left.
__device__ __forceinline__ void place_sum(i8* codes, int groups, int tokens, int token, int group, int sum) {
  const float v = static_cast<float>(sum) * 0x1p-14f;
  const u16 high = to_bfloat_bits(v), low = to_bfloat_bits(v - from_bfloat_bits(high));
  const int last = group + 1 < groups ? group : group | 15;
  for (int at = group; at <= last; ++at) {
    i8* line = codes + (static_cast<i64>(groups + at / 16) * tokens + token) * 128 + at % 4 * 4;
    const int piece = at % 16 / 4 * 2;
    const u32 parts[2] = {high, low};
#pragma unroll
    for (int i = 0; i < 2; ++i)
      *reinterpret_cast<u32*>(line + ((piece + i) ^ token % 8) * 16) = at == group ? parts[i] * 0x10001u : 0u;
  }
}
