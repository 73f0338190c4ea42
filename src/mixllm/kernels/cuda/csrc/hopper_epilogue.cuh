// From a warpgroup's accumulators to y: scales, bias, and through shared memory to the original channel order.
//
// The 64 rows of a warpgroup are neighbours in sorted order: their channels are neighbours but for the gaps that the
// other width fills. stmatrix turns 8 x 8 values on their way, so a token's 64 rows lie in one line, and a lane
// writes two of them for each token.
#pragma once
#include "hopper_ring.cuh"
#include "wgmma_sums.cuh"

// Scale and excess (see Token) of a tile's tokens, for one warpgroup.
__device__ __forceinline__ void keep_tokens(u32 table, const Arguments& p, int first, int thread) {
#pragma unroll
  for (int t = 0; t < BN; t += 128) {
    const Token token(p, first + t + thread);
    store_shared_pair(table + (t + thread) * 8, __float_as_uint(token.scale), token.excess);
  }
}

// What a thread must know of rows g and g + 8 of its warp, asked for before the main loop.
struct Pair {
  int channel[2];
  float scale[2], bias[2];

  __device__ __forceinline__ Pair(const Arguments& p, const Place& place, int tile, int g) {
    const int row = (place.row16 + tile + (place.eight ? 0 : p.shape.rows8)) * 16 + g;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const bool inside = tile < place.rows;
      channel[h] = inside ? p.out.rows[row + 8 * h] : -1;
      scale[h] = inside && WEIGHT_SCALES == 0 ? p.out.row_scales[row + 8 * h] : 1.0f;
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) bias[h] = channel[h] >= 0 ? bias_of(p.out, channel[h]) : 0.0f;
  }
};

// Values of rows g + 8 h and tokens 8 j + 2 c + e, at [2 h + e].
__device__ __forceinline__ void finished(float (&y)[4], const Sum* sums, const Pair& pair, Words4 tokens) {
  const float scale[2] = {__uint_as_float(tokens.x), __uint_as_float(tokens.z)};
  const int excess[2] = {static_cast<int>(tokens.y), static_cast<int>(tokens.w)};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float sum = WHOLE_SUM ? static_cast<float>(static_cast<int>(sums[i]) - excess[i % 2]) : sums[i];
    y[i] = __fadd_rn(__fmul_rn(__fmul_rn(sum, scale[i % 2]), pair.scale[i / 2]), pair.bias[i / 2]);
  }
}

// thread: of the warpgroup's 128; staging, table: its own; group: which of the block's warpgroups.
template <Type TYPE>
__device__ __forceinline__ void write_narrow(const Sum (&d)[BN / 2], const Arguments& p, const Place& place,
                                             const Pair& pair, u32 staging, u32 table, int group, int thread) {
  const int warp = thread / 32, lane = thread % 32;
  const int row = (place.row16 + group * 4 + (place.eight ? 0 : p.shape.rows8)) * 16 + lane;
  int channel[2];
#pragma unroll
  for (int h = 0; h < 2; ++h)
    channel[h] = group * 4 + (lane + 32 * h) / 16 < place.rows ? p.out.rows[row + 32 * h] : -1;
  // Matrix lane / 8 of the four: rows 8 (m % 2), tokens 8 (m / 2); its line lane % 8.
  const u32 corner = staging + (lane / 16 * 8 + lane % 8) * LINE + warp * 32 + lane / 8 % 2 * 16;
#pragma unroll
  for (int chunk = 0; chunk < BN; chunk += CHUNK) {
    if (place.token + chunk >= p.shape.tokens) break;
#pragma unroll
    for (int t = 0; t < CHUNK; t += 16) {
      u32 packed[4];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int j = (chunk + t) / 8 + half;
        float y[4];
        finished(y, d + j * 4, pair, load_shared(table + (j * 8 + lane % 4 * 2) * 8));
        packed[half * 2] = to_pair<TYPE>(y[0], y[1]), packed[half * 2 + 1] = to_pair<TYPE>(y[2], y[3]);
      }
      store_transposed(corner + t * LINE, packed);
    }
    named_barrier<128>(1 + group);
    constexpr int LINES = CHUNK / 4;
    const int first = place.token + chunk + warp * LINES, count = p.shape.tokens - first;
    const u32 from = staging + warp * LINES * LINE + lane * 2;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (channel[h] < 0) continue;
      const i64 pitch = p.out.channels;
      u16* to = static_cast<u16*>(p.out.y) + first * pitch + channel[h];
      if (count >= LINES) {
        u32 bits[LINES];
#pragma unroll
        for (int t = 0; t < LINES; ++t) bits[t] = load_shared_u16(from + t * LINE + h * 64);
#pragma unroll
        for (int t = 0; t < LINES; ++t, to += pitch) *to = static_cast<u16>(bits[t]);
      } else {
#pragma unroll 1
        for (int t = 0; t < count; ++t, to += pitch) *to = static_cast<u16>(load_shared_u16(from + t * LINE + h * 64));
      }
    }
    named_barrier<128>(1 + group);
  }
}

// float32 goes out as it lies in the registers: it is no one's fast path.
__device__ __forceinline__ void write_wide(const Sum (&d)[BN / 2], const Arguments& p, const Place& place,
                                           const Pair& pair, u32 table, int thread) {
  const int c = thread % 4;
#pragma unroll
  for (int j = 0; j < BN / 8; ++j) {
    float y[4];
    finished(y, d + j * 4, pair, load_shared(table + (j * 8 + c * 2) * 8));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int token = place.token + j * 8 + c * 2 + i % 2;
      if (token < p.shape.tokens && pair.channel[i / 2] >= 0)
        static_cast<float*>(p.out.y)[static_cast<i64>(token) * p.out.channels + pair.channel[i / 2]] = y[i];
    }
  }
}

__device__ __forceinline__ void write(const Sum (&d)[BN / 2], const Arguments& p, const Place& place, const Pair& pair,
                                      u32 staging, u32 table, int group, int thread) {
  named_barrier<128>(1 + group);  // all of the warpgroup have put their tokens into the table
  if (p.out.type == Type::bf16)
    write_narrow<Type::bf16>(d, p, place, pair, staging, table, group, thread);
  else if (p.out.type == Type::f16)
    write_narrow<Type::f16>(d, p, place, pair, staging, table, group, thread);
  else
    write_wide(d, p, place, pair, table, thread);
  named_barrier<128>(1 + group);  // the table may be written again
}
