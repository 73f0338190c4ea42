// Many tokens' activations to int8 for the products on Hopper: what quantize.cu does, at the rate of issuing instructions.
//
// Compiled once for each set of these macros: INPUT, ROTATE, TAIL and GROUP as in quantize.cu; SUMMED 1 for its TILED 2; THREADS,
// the most in a block.
//
// A block goes through every gridDim-th token. A thread's 64 registers hold no second token's inputs, but an SM has as many
// threads as it can: others work while some wait. Four lanes share a Hadamard block: lane c has inputs 16 b + 4 c ..
// 16 b + 4 c + 3 of each sixteen, so that only two of the seven butterflies want another lane's values (a shuffle costs as
// much as a sum) and its codes are whole 16-byte pieces of a line as hopper.cu wants it. The only barrier of a token is that
// for its largest value. Where a block has several tokens L2 is asked for the next one while this one's inputs come.
#include "activations.cuh"
#include "sm90.cuh"

struct Arguments {
  const void* x;   // [tokens][x_pitch], the first `inputs` of each row
  i8* codes;       // [groups of 128][tokens][128], tiled; zeros from `inputs` on
  float* scales;   // [groups of activations][scale_pitch]
  int* sums;       // [tokens], of a token's codes, where GROUP is 0
  int* flags;      // set to zero for the product that follows
  i64 x_pitch;     // in elements
  int inputs, padded, tokens, scale_pitch, flag_count;
  int tail_block;  // the Hadamard's width in the last inputs % 128
  float tail_norm;
  int aligned;     // always: rows begin on 16 bytes and are whole vectors of 8
};

constexpr u32 ABOVE = SUMMED ? SIGNS : 0u;  // unsigned codes, 128 too much
constexpr int MOST_WARPS = THREADS / 32, SIXTEENS = 8, WIDTH = GROUP == 0 ? 128 : GROUP;
static_assert(INPUT != 2, "float32 takes more registers");

// Out of line, or what it computes is kept in registers from token to token.
__device__ __noinline__ void place_sum_apart(const Arguments& p, int token, int group, int sum) {
  place_sum(p.codes, p.padded / 128, p.tokens, token, group, sum);
}

struct Quarter {
  const Arguments& p;
  int block, c;  // the Hadamard block's first input, and which quarter of its sixteens

  __device__ __forceinline__ explicit Quarter(const Arguments& p) : p(p) {
    c = threadIdx.x % 4, block = threadIdx.x / 4 * 128;
  }
  // Zeros behind the row's end.
  __device__ __forceinline__ void read(int token, float (&v)[SIXTEENS][4]) const {
    const u8* row = static_cast<const u8*>(p.x) + (token * p.x_pitch + block + c * 4) * INPUT_BYTES;
    Words2 raw[SIXTEENS] = {};
#pragma unroll
    for (int b = 0; b < SIXTEENS; ++b)
      if ((TAIL ? block + b * 16 + c * 4 : block) < p.inputs) raw[b] = load_l2_8(row + b * 16 * INPUT_BYTES);
#pragma unroll
    for (int b = 0; b < SIXTEENS; ++b) {
      const u32 words[2] = {raw[b].x, raw[b].y};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const u16 bits = static_cast<u16>(words[e / 2] >> (e % 2 * 16));
        v[b][e] = INPUT == 0 ? from_half_bits(bits) : from_bfloat_bits(bits);
      }
    }
  }

  // As rotate() without its last multiplication: strides 1 and 2 in registers, 4 and 8 between four lanes, 16 to 64 in registers.
  __device__ __forceinline__ void rotate_all(float (&v)[SIXTEENS][4]) const {
    const int width = tail() ? p.tail_block : 128;
#pragma unroll
    for (int b = 0; b < SIXTEENS; ++b)
#pragma unroll
      for (int stride = 1; stride < 4; stride *= 2)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          if (e & stride || (TAIL && stride >= width)) continue;
          butterfly(v[b][e], v[b][e + stride]);
        }
#pragma unroll
    for (int stride = 4; stride < 16; stride *= 2) {
      const float sign = c & (stride / 4) ? -1.0f : 1.0f;
#pragma unroll
      for (int b = 0; b < SIXTEENS; ++b)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float turned = __fmaf_rn(v[b][e], sign, __shfl_xor_sync(0xFFFFFFFFu, v[b][e], stride / 4));
          v[b][e] = TAIL && stride >= width ? v[b][e] : turned;
        }
    }
#pragma unroll
    for (int apart = 1; apart < SIXTEENS; apart *= 2)
#pragma unroll
      for (int b = 0; b < SIXTEENS; ++b)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          if (b & apart || (TAIL && apart * 16 >= width)) continue;
          butterfly(v[b][e], v[b + apart][e]);
        }
  }
  // What is left to multiply by: it rises with |v|, so the largest may be multiplied alone.
  __device__ __forceinline__ float norm() const { return !ROTATE ? 1.0f : tail() ? p.tail_norm : NORM_128; }

  // Of each half of a line, 64 inputs, lane c has piece c: words w of inputs 16 w + 4 c ... ; see place_tiled().
  __device__ __forceinline__ void place(int token, const u32 (&packed)[SIXTEENS]) const {
    if (block >= p.padded) return;
    i8* line = p.codes + (static_cast<i64>(block / 128) * p.tokens + token) * 128;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const u32* words = packed + half * 4;
      const Words4 piece{words[0] ^ ABOVE, words[1] ^ ABOVE, words[2] ^ ABOVE, words[3] ^ ABOVE};
      *reinterpret_cast<Words4*>(line + ((half * 4 + c) ^ token % 8) * 16) = piece;
    }
  }

 private:
  __device__ __forceinline__ bool tail() const { return TAIL && block >= p.inputs / 128 * 128; }
};

// round(fl(v * norm) / s), as round_to_codes() does it: both factors are one here, and the bounds wide enough for the
// rounding of their products too (five roundings of 2^-24, and half a step of s where v * norm is subnormal).
__device__ __forceinline__ void round_all(const float (&v)[SIXTEENS][4], const Scale& s, float norm, u32 (&packed)[SIXTEENS]) {
#pragma unroll
  for (int b = 0; b < SIXTEENS; ++b) packed[b] = 0;
  if (s.empty) return;
  const float both = __fmul_rn(__frcp_rn(s.value), norm), below = both * (1.0f - 0x1p-21f), above = both * (1.0f + 0x1p-21f);
  u32 differ = 0;
  const auto bounds = [&](int b, u32& code) {
    u32 low[4], high[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      low[e] = __float_as_uint(__fmaf_rn(v[b][e], below, ROUNDER));
      high[e] = __float_as_uint(__fmaf_rn(v[b][e], above, ROUNDER));
    }
    code = low_four(low);
    return code ^ low_four(high);
  };
#pragma unroll
  for (int b = 0; b < SIXTEENS; ++b) differ |= bounds(b, packed[b]);
  if (differ == 0) return;
#pragma unroll
  for (int b = 0; b < SIXTEENS; ++b) {
    if (bounds(b, packed[b]) == 0) continue;
    u32 low[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) low[e] = divided(__fmul_rn(v[b][e], norm), s.value);
    packed[b] = low_four(low);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) quantize(const __grid_constant__ Arguments p) {
  // Two sets each, used by turns.
  __shared__ u32 tops[2][MOST_WARPS];
  __shared__ int totals[2][MOST_WARPS];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  const Quarter its(p);
  let_next_kernel_start();
  wait_for_earlier_kernels();
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < p.flag_count; i += gridDim.x * blockDim.x) p.flags[i] = 0;

  // A token's sum is complete only at the next one's barrier.
  const auto write_sum = [&](int token, int turn) {
    if (GROUP != 0 || warp > 0) return;
    const int sum = __reduce_add_sync(0xFFFFFFFFu, lane < warps ? totals[turn][lane] : 0);
    if (lane == 0) p.sums[token] = sum;
  };
  const bool several = p.tokens > 2 * static_cast<int>(gridDim.x);  // with one or two it is no faster
  int turn = 0, before = -1;
  for (int token = blockIdx.x; token < p.tokens; token += gridDim.x, turn ^= 1) {
    const int next = token + gridDim.x;
    if (several && threadIdx.x == 0 && next < p.tokens)
      prefetch_l2(static_cast<const u8*>(p.x) + next * p.x_pitch * INPUT_BYTES, p.inputs * INPUT_BYTES);
    float v[SIXTEENS][4];
    its.read(token, v);
    if constexpr (ROTATE) its.rotate_all(v);
    float largest = 0.0f;
#pragma unroll
    for (int b = 0; b < SIXTEENS; ++b)
#pragma unroll
      for (int e = 0; e < 4; ++e) largest = max_or_nan(largest, fabsf(v[b][e]));
    u32 top = __float_as_uint(__fmul_rn(largest, its.norm()));
    if constexpr (GROUP == 0) {
      top = __reduce_max_sync(0xFFFFFFFFu, top);
      if (lane == 0) tops[turn][warp] = top;
      __syncthreads();
      top = __reduce_max_sync(0xFFFFFFFFu, lane < warps ? tops[turn][lane] : 0u);
      if (before >= 0) write_sum(before, turn ^ 1);
    } else {
      // Four lanes have 128 inputs.
#pragma unroll
      for (int other = 1; other < WIDTH / 32; other *= 2) top = max(top, __shfl_xor_sync(0xFFFFFFFFu, top, other));
    }
    const Scale scale = scale_of(top);
    u32 packed[SIXTEENS];
    round_all(v, scale, its.norm(), packed);
    its.place(token, packed);
    int sum = 0;
#pragma unroll
    for (int b = 0; b < SIXTEENS; ++b) sum = __dp4a(static_cast<int>(packed[b]), static_cast<int>(ONES), sum);
    if constexpr (SUMMED) {
      int group = sum + __shfl_xor_sync(0xFFFFFFFFu, sum, 1);
      group += __shfl_xor_sync(0xFFFFFFFFu, group, 2);
      if (its.c == 0 && its.block < p.padded) place_sum_apart(p, token, its.block / 128, group);
    }
    if constexpr (GROUP == 0) {
      sum = __reduce_add_sync(0xFFFFFFFFu, sum);
      if (lane == 0) totals[turn][warp] = sum;
      if (threadIdx.x == 0) p.scales[token] = scale.value;
      before = token;
    } else if (its.c == 0 && its.block % WIDTH == 0 && its.block < p.inputs) {
      p.scales[static_cast<i64>(its.block / WIDTH) * p.scale_pitch + token] = scale.value;
    }
  }
  if constexpr (GROUP == 0) {
    __syncthreads();
    if (before >= 0) write_sum(before, turn ^ 1);
  }
}
