// A thread's half of a Hadamard block of 128 inputs, for quantize_many.cu: from memory to its codes in the order of hopper.cu.
//
// Two lanes share a block. Of each sixteen inputs lane c reads the eight 16 j + 8 c .. (so that two lanes ask for whole sectors)
// and in the end has 16 j + 4 c .. 16 j + 4 c + 3 and 16 j + 8 + 4 c .. : whole 16-byte pieces of a line, two lanes a sector. The
// butterflies of stride 8 are where they change hands: half of a lane's values go to the other, where a butterfly in place
// wants them all (a shuffle costs as much as a sum).
#pragma once
#include "activations.cuh"

constexpr u32 ABOVE = SUMMED ? SIGNS : 0u;  // unsigned codes, 128 too much
constexpr int SIXTEENS = 8, THREAD_INPUTS = 64, AT_ONCE = TAIL ? 1 : 2;
static_assert(INPUT != 2, "float32 takes more registers");

// Values v[j][e], e / 4 being which half of sixteen j; of lane 1 the second halves are negated where they are rotated.
using Values = float[SIXTEENS][8];
using Codes = u32[SIXTEENS][2];

template <typename Source>
struct HalfBlock {
  const Source& p;
  int block, c;  // the Hadamard block's first input, and which lane of its two

  __device__ __forceinline__ HalfBlock(const Source& p, int thread) : p(p), block(thread / 2 * 128), c(thread % 2) {}

  // All of it on its way at once; zeros behind the row's end.
  __device__ __forceinline__ void load(int token, Words4 (&raw)[SIXTEENS]) const {
    const u8* first = static_cast<const u8*>(p.x) + (token * p.x_pitch + block + c * 8) * INPUT_BYTES;
#pragma unroll
    for (int j = 0; j < SIXTEENS; ++j) {
      raw[j] = {0, 0, 0, 0};
      if ((TAIL ? block + j * 16 + c * 8 : block) < p.inputs) raw[j] = load_l2(first + j * 16 * INPUT_BYTES);
    }
  }
  // The same by way of a warp's own room in shared memory: whole lines at a time, and no registers held while they are on
  // their way. `room` is on 128 bytes. Pieces of 16 bytes are swizzled by their Hadamard block, so that eight lanes read from
  // all banks. Rooms are cleared once: what is behind the row's end is never written.
  __device__ __forceinline__ void clear(u32 room) const {
    const int copied = copies();
#pragma unroll
    for (int i = 0; i < SIXTEENS; ++i)
      if (i >= copied) store_shared(place_of(room, i), {0, 0, 0, 0});
  }
  __device__ __forceinline__ void ask(int token, u32 room) const {
    const u8* first = static_cast<const u8*>(p.x) + (token * p.x_pitch + own_piece()) * INPUT_BYTES;
    const int copied = copies();
    __syncwarp();  // all have read what was there
    if (copied >= SIXTEENS) {
#pragma unroll
      for (int i = 0; i < SIXTEENS; ++i) copy_async(place_of(room, i), first + i * 256 * INPUT_BYTES);
    } else {
#pragma unroll 1
      for (int i = 0; i < copied; ++i) copy_async(place_of(room, i), first + i * 256 * INPUT_BYTES);
    }
    copy_commit();
  }
  __device__ __forceinline__ void take(u32 room, Words4 (&raw)[SIXTEENS]) const {
    copy_wait<0>();
    __syncwarp();
    const int pair = threadIdx.x % 32 / 2;
    const u32 from = room + pair * 256 + (pair % 4 * 2 + c) * 16;
#pragma unroll
    for (int j = 0; j < SIXTEENS; ++j) raw[j] = load_shared((from ^ j % 4 * 32) + j / 4 * 128);
  }

  // As rotate() of activations.cuh without its last multiplication.
  __device__ __forceinline__ void rotate_all(Values& v) const {
    const int width = tail() ? p.tail_block : 128;  // 8 at least: rows are whole vectors
    const float sign = own_sign();
    // Of a last block that is 8 wide each value stays what it is: a product with 0 and a sum with that, exact but for an
    // infinity's, whose group is NaN in any case.
    const bool apart_8 = TAIL && width == 8;
    const float of_own[2] = {apart_8 && c ? 0.0f : 1.0f, !apart_8 ? 1.0f : c ? -1.0f : 0.0f};
    const float of_other[2] = {apart_8 && !c ? 0.0f : 1.0f, !apart_8 ? -1.0f : c ? 0.0f : 1.0f};
#pragma unroll
    for (int j = 0; j < SIXTEENS; ++j) {
#pragma unroll
      for (int stride = 1; stride < 4; stride *= 2)
#pragma unroll
        for (int e = 0; e < 8; ++e)
          if (!(e & stride)) butterfly(v[j][e], v[j][e + stride]);
      // Lane 1 puts the difference first: what it keeps then has the same place as what lane 0 keeps.
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float a = v[j][e], b = v[j][e + 4];
        v[j][e] = __fmaf_rn(b, sign, a), v[j][e + 4] = __fmaf_rn(b, -sign, a);
      }
    }
#pragma unroll
    for (int j = 0; j < SIXTEENS; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float own = v[j][e], other = __shfl_xor_sync(0xFFFFFFFFu, v[j][e + 4], 1);
        if constexpr (TAIL) {
          const float kept = own;
          own = __fmaf_rn(other, of_other[0], __fmul_rn(kept, of_own[0]));
          other = __fmaf_rn(other, of_other[1], __fmul_rn(kept, of_own[1]));
        } else {
          butterfly(own, other);
        }
        v[j][e] = own, v[j][e + 4] = other;
      }
#pragma unroll
    for (int apart = 1; apart < SIXTEENS; apart *= 2) {
      if (TAIL && apart * 16 >= width) break;
#pragma unroll
      for (int j = 0; j < SIXTEENS; ++j)
#pragma unroll
        for (int e = 0; e < 8; ++e)
          if (!(j & apart)) butterfly(v[j][e], v[j + apart][e]);
    }
  }

  // What is left to multiply by: it rises with |v|, so the largest may be multiplied alone.
  __device__ __forceinline__ float norm() const { return !ROTATE ? 1.0f : tail() ? p.tail_norm : NORM_128; }
  // Of the second halves' values.
  __device__ __forceinline__ float own_sign() const { return ROTATE && c ? -1.0f : 1.0f; }

  // Of each half of a line, 64 inputs, lane c has pieces c and c + 2; see place_tiled().
  __device__ __forceinline__ void place(int token, Codes& codes) const {
    if constexpr (!ROTATE) trade(codes);
    if (block >= p.padded) return;
    i8* line = p.codes + (static_cast<i64>(block / 128) * p.tokens + token) * 128;
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const Codes& of = codes;
        const int j = half * 4;
        const Words4 piece{of[j][i] ^ ABOVE, of[j + 1][i] ^ ABOVE, of[j + 2][i] ^ ABOVE, of[j + 3][i] ^ ABOVE};
        *reinterpret_cast<Words4*>(line + ((half * 4 + i * 2 + c) ^ token % 8) * 16) = piece;
      }
  }

 private:
  // Of the warp's inputs the first eight that this lane copies; it goes on 256 inputs further, so many times.
  __device__ __forceinline__ int own_piece() const { return (block - threadIdx.x % 32 / 2 * 128) + threadIdx.x % 32 * 8; }
  __device__ __forceinline__ int copies() const { return (p.inputs - own_piece() + 255) >> 8; }
  __device__ __forceinline__ u32 place_of(u32 room, int i) const {
    const int lane = threadIdx.x % 32;
    return (room + (lane ^ lane / 16 * 2) * 16 ^ i % 2 * 64) + i * 512;
  }
  __device__ __forceinline__ bool tail() const { return TAIL && block >= p.inputs / 128 * 128; }
  // Codes as read, 16 j + 8 c .. , to those of the lane's pieces.
  __device__ __forceinline__ void trade(Codes& codes) const {
#pragma unroll
    for (int j = 0; j < SIXTEENS; ++j) {
      const u32 first = codes[j][0], second = codes[j][1];
      const u32 kept = c ? second : first, other = __shfl_xor_sync(0xFFFFFFFFu, c ? first : second, 1);
      codes[j][0] = c ? other : kept, codes[j][1] = c ? kept : other;
    }
  }
};

__device__ __forceinline__ void all_to_floats(const Words4 (&raw)[SIXTEENS], Values& v) {
#pragma unroll
  for (int j = 0; j < SIXTEENS; ++j) to_floats(Raw{{raw[j]}}, v[j]);
}

__device__ __forceinline__ float largest_of(const Values& v) {
  float of[4] = {};  // apart, or each would wait for the one before
#pragma unroll
  for (int j = 0; j < SIXTEENS; ++j)
#pragma unroll
    for (int e = 0; e < 8; ++e) of[e % 4] = max_or_nan(of[e % 4], fabsf(v[j][e]));
  return max_or_nan(max_or_nan(of[0], of[1]), max_or_nan(of[2], of[3]));
}

// round(fl(v * norm) / s), as round_to_codes() does it: both factors are one here, and the bounds wide enough for the
// rounding of their products too (five roundings of 2^-24, and half a step of s where v * norm is subnormal). Values that
// have been looked at twice give their registers back.
__device__ __forceinline__ void round_all(const Values& v, const Scale& s, float norm, float sign, Codes& codes) {
#pragma unroll
  for (int j = 0; j < SIXTEENS; ++j) codes[j][0] = codes[j][1] = 0;
  if (s.empty) return;
  const float both = __fmul_rn(__frcp_rn(s.value), norm), below = both * (1.0f - 0x1p-21f), above = both * (1.0f + 0x1p-21f);
  const float signs[2] = {1.0f, sign}, least[2] = {below, below * sign}, most[2] = {above, above * sign};
  const auto bounds = [&](int j, int i, u32& code) {
    u32 low[4], high[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      low[e] = __float_as_uint(__fmaf_rn(v[j][i * 4 + e], least[i], ROUNDER));
      high[e] = __float_as_uint(__fmaf_rn(v[j][i * 4 + e], most[i], ROUNDER));
    }
    code = low_four(low);
    return code ^ low_four(high);
  };
#pragma unroll
  for (int part = 0; part < SIXTEENS; part += AT_ONCE) {
    u32 differ = 0;
#pragma unroll
    for (int j = part; j < part + AT_ONCE; ++j)
#pragma unroll
      for (int i = 0; i < 2; ++i) differ |= bounds(j, i, codes[j][i]);
    if (differ == 0) continue;
#pragma unroll
    for (int j = part; j < part + AT_ONCE; ++j)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (bounds(j, i, codes[j][i]) == 0) continue;
        u32 low[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) low[e] = divided(__fmul_rn(v[j][i * 4 + e] * signs[i], norm), s.value);
        codes[j][i] = low_four(low);
      }
  }
}

__device__ __forceinline__ int sum_of(const Codes& codes) {
  int sum = 0;
#pragma unroll
  for (int j = 0; j < SIXTEENS; ++j)
#pragma unroll
    for (int i = 0; i < 2; ++i) sum = __dp4a(static_cast<int>(codes[j][i]), static_cast<int>(ONES), sum);
  return sum;
}

// Of all lanes: products with ones on the tensor cores, since dp4a is slow on Hopper. Whatever the order of the operands, a lane
// has two of sixteen rows' sums, and four lanes have the same.
__device__ __forceinline__ int sum_of_warp(const Codes& codes) {
  int sums[4] = {};
#pragma unroll
  for (int j = 0; j < SIXTEENS; j += 4)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const u32 piece[4] = {codes[j][i], codes[j + 1][i], codes[j + 2][i], codes[j + 3][i]};
      mma<false>(sums, piece, ONES, ONES);
    }
  return __reduce_add_sync(0xFFFFFFFFu, sums[0] + sums[2]) / 4;
}
