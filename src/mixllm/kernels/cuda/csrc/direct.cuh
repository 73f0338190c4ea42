// A warp's 16 rows by BN tokens from registers to y, for kernels whose warps write by themselves (skinny.cu, and in parts strips.cu).
#pragma once
#include "epilogue.cuh"
#include "sm90.cuh"

// What a lane must know of rows g and g + 8 of its warp, asked for before the sums are complete.
struct Pair {
  int channel[2] = {-1, -1};
  float scale[2], bias[2] = {0.0f, 0.0f};

  Pair() = default;
  // row16: the 16-row tile, counted inside its kind.
  __device__ __forceinline__ Pair(const Arguments& p, int row16, bool eight, int g) {
    const bool inside = row16 < (eight ? p.shape.rows8 : p.shape.rows4);
    const int row = (row16 + (eight ? 0 : p.shape.rows8)) * 16 + g;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (inside) channel[h] = p.out.rows[row + 8 * h];
      scale[h] = inside && WEIGHT_SCALES == 0 ? p.out.row_scales[row + 8 * h] : 1.0f;
    }
    // Without a bias nothing waits here for the channels.
    if (p.out.bias == nullptr) return;
#pragma unroll
    for (int h = 0; h < 2; ++h)
      if (channel[h] >= 0) bias[h] = bias_of(p.out, channel[h]);
  }
};

using Tile = Accumulators<1, BN / 8>;

// What must be known of two neighbouring tokens. table: a token's scale and excess, 8 bytes each; over: weights were
// multiplied as unsigned bytes.
struct TwoTokens {
  float scale[2];
  int excess[2];

  __device__ __forceinline__ TwoTokens(u32 table, int first, bool over) {
    const Words4 both = load_shared(table + first * 8);
    scale[0] = __uint_as_float(both.x), scale[1] = __uint_as_float(both.z);
    excess[0] = over ? static_cast<int>(both.y) : 0, excess[1] = over ? static_cast<int>(both.w) : 0;
  }
  // Of token e, from its sum's bits.
  __device__ __forceinline__ float output(int e, int bits, float row_scale, float bias) const {
    const float sum = WHOLE_SUM ? static_cast<float>(bits - excess[e]) : __int_as_float(bits);
    return __fadd_rn(__fmul_rn(__fmul_rn(sum, scale[e]), row_scale), bias);
  }
};

// line: where the token's outputs begin. A row without a channel has none.
__device__ __forceinline__ void put(const Outputs& out, i64 line, int channel, float y) {
  if (channel < 0) return;
  if (out.type == Type::f32)
    static_cast<float*>(out.y)[line + channel] = y;
  else
    static_cast<u16*>(out.y)[line + channel] = to_bits(y, out.type);
}

// Straight from the registers: eight lanes have neighbouring rows of a token, whose channels are neighbours too but for
// the gaps that the other bit-width fills; L2 puts the pieces together.
__device__ __forceinline__ void write(const Tile& tile, const Arguments& p, const Pair& rows, u32 table, bool over, int c) {
#pragma unroll
  for (int j = 0; j < BN / 8; ++j) {
    if (j * 8 >= p.shape.tokens) break;
    const TwoTokens tokens(table, j * 8 + c * 2, over);
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int token = j * 8 + c * 2 + e;
      if (token >= p.shape.tokens) continue;
      const i64 line = static_cast<i64>(token) * p.out.channels;
#pragma unroll
      for (int h = 0; h < 2; ++h)
        put(p.out, line, rows.channel[h], tokens.output(e, tile.v[0][j][2 * h + e], rows.scale[h], rows.bias[h]));
    }
  }
}

// The table that TwoTokens reads; each of THREADS_THERE threads has some tokens.
template <int THREADS_THERE>
__device__ __forceinline__ void note_tokens(const Arguments& p, u32 table, int thread) {
  for (int t = thread; t < BN; t += THREADS_THERE) {
    const Token token(p, t);
    store_shared_pair(table + t * 8, __float_as_uint(token.scale), token.excess);
  }
}
