// From accumulators to y: sums over warps and blocks, then scales, bias and the original channel order.
#pragma once
#include "accumulate.cuh"
#include "schedule.cuh"

struct Outputs {
  const int* rows;          // [(rows8 + rows4)][16] original channel, -1 where a tile is padded; 8-bit rows first
  const float* row_scales;  // the same order; WEIGHT_SCALES 0 only
  const int* x_sums;        // [tokens]; used where unsigned bytes put 128 too much into every weight
  const void* bias;         // [channels] of y's type, or null
  void* y;                  // [tokens][channels]
  int channels;
  Type type;
};

constexpr int WARP_TILE = BM / WM * (BN / WN);

// The WK warps that share a tile add up, in the order of their slots.
template <typename Tile>
__device__ __forceinline__ void sum_over_warps(Tile& tile, u8* staging, int wk, int thread) {
  constexpr int MI = BM / 16 / WM, NJ = BN / 8 / WN, SHARERS = 32 * WM * WN;
  Words4* slots = reinterpret_cast<Words4*>(staging);
  if (wk > 0) {
#pragma unroll
    for (int i = 0; i < MI; ++i)
#pragma unroll
      for (int j = 0; j < NJ; ++j) slots[((wk - 1) * MI * NJ + i * NJ + j) * SHARERS + thread] = tile.words(i, j);
  }
  __syncthreads();
  if (wk == 0) {
#pragma unroll
    for (int k = 0; k < WK - 1; ++k)
#pragma unroll
      for (int i = 0; i < MI; ++i)
#pragma unroll
        for (int j = 0; j < NJ; ++j) tile.add(i, j, slots[(k * MI * NJ + i * NJ + j) * SHARERS + thread]);
  }
  // The next tile's sums may be written only when these are read.
  __syncthreads();
}

// This block has the beginning or the middle of a tile: its owner, a later block, will want the sums.
template <typename Tile>
__device__ __forceinline__ void give_partials(const Tile& tile, int* partials, int* flag, int wk) {
  constexpr int MI = BM / 16 / WM, NJ = BN / 8 / WN, SHARERS = 32 * WM * WN;
  if (wk == 0) {
    Words4* to = reinterpret_cast<Words4*>(partials) + threadIdx.x;
#pragma unroll
    for (int i = 0; i < MI; ++i)
#pragma unroll
      for (int j = 0; j < NJ; ++j) store_l2(to + (i * NJ + j) * SHARERS, tile.words(i, j));
    __threadfence();
  }
  __syncthreads();
  if (threadIdx.x == 0) raise_flag(flag);
}

// This block has the end of a tile: add what the blocks before it have, nearest first, and lower their flags.
template <typename Tile>
__device__ __forceinline__ void take_partials(Tile& tile, const Schedule<BM, BN>& schedule, int index,
                                              const int* partials, int* flags, int wk) {
  constexpr int MI = BM / 16 / WM, NJ = BN / 8 / WN, SHARERS = 32 * WM * WN;
  int tile_after = index, slot_after = schedule.first_slot;
  for (int block = blockIdx.x - 1;; --block) {
    int first_tile, first_slot;
    schedule.start_of(block, first_tile, first_slot);
    // With fewer slots than blocks some blocks have none.
    if (first_tile != tile_after || first_slot != slot_after) {
      if (threadIdx.x == 0) {
        while (read_flag(flags + block) == 0) {
        }
      }
      __syncthreads();
      if (wk == 0) {
        const Words4* from =
            reinterpret_cast<const Words4*>(partials + static_cast<i64>(block) * BM * BN) + threadIdx.x;
#pragma unroll
        for (int i = 0; i < MI; ++i)
#pragma unroll
          for (int j = 0; j < NJ; ++j) tile.add(i, j, load_l2(from + (i * NJ + j) * SHARERS));
      }
      if (threadIdx.x == 0) flags[block] = 0;
    }
    tile_after = first_tile, slot_after = first_slot;
    if (first_tile < index || first_slot == 0) return;
  }
}

__device__ __forceinline__ u16 to_bits(float v, Type type) {
  return type == Type::f16 ? to_half_bits(v) : to_bfloat_bits(v);
}

__device__ __forceinline__ float bias_of(const Outputs& out, int channel) {
  if (out.bias == nullptr) return 0.0f;
  if (out.type == Type::f32) return static_cast<const float*>(out.bias)[channel];
  const u16 bits = static_cast<const u16*>(out.bias)[channel];
  return out.type == Type::f16 ? from_half_bits(bits) : from_bfloat_bits(bits);
}

// A warp writes 8 tokens at a time: through its own corner of shared memory, so that neighbouring lanes have
// neighbouring rows, whose channels are neighbours too but for the gaps that the other bit-width fills.
constexpr int WARP_ROWS = BM / WM, STAGING_PITCH = WARP_ROWS + 4;
constexpr int WARP_STAGING = 8 * STAGING_PITCH * 4;

template <typename Tile>
__device__ __forceinline__ void write_tile(const Tile& tile, const Outputs& out, const float* x_scales, const Shape& shape,
                                           const Segment& s, int wm, int wn, int lane, u8* staging) {
  constexpr int MI = BM / 16 / WM, NJ = BN / 8 / WN;
  float* corner = reinterpret_cast<float*>(staging);
  const int g = lane / 4, c = lane % 4;
  const int row16 = s.row16 + wm * MI, left = (s.eight ? shape.rows8 : shape.rows4) - row16;
  const int row = (row16 + (s.eight ? 0 : shape.rows8)) * 16;

  constexpr int PER_LANE = (WARP_ROWS + 31) / 32;
  int channel[PER_LANE];
  float bias[PER_LANE], row_scale[PER_LANE];
#pragma unroll
  for (int k = 0; k < PER_LANE; ++k) {
    const int r = k * 32 + lane;
    channel[k] = r < WARP_ROWS && r / 16 < left ? out.rows[row + r] : -1;
    bias[k] = channel[k] >= 0 ? bias_of(out, channel[k]) : 0.0f;
    row_scale[k] = WEIGHT_SCALES == 0 && channel[k] >= 0 ? out.row_scales[row + r] : 1.0f;
  }

  const int token = s.token_block * BN + wn * NJ * 8;
#pragma unroll
  for (int j = 0; j < NJ; ++j) {
    const int first = token + j * 8;
    if (first >= shape.tokens) break;
    float scale[2] = {1.0f, 1.0f};
    int excess[2] = {0, 0};
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int t = first + c * 2 + e;
      if (t >= shape.tokens) continue;
      if (TOKEN_SCALES) scale[e] = x_scales[t];
      if (WHOLE_SUM && !s.eight) excess[e] = out.x_sums[t] * 128;
    }
#pragma unroll
    for (int i = 0; i < MI; ++i)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int bits = tile.v[i][j][e];
        const float sum = WHOLE_SUM ? static_cast<float>(bits - excess[e % 2]) : __int_as_float(bits);
        corner[(c * 2 + e % 2) * STAGING_PITCH + i * 16 + e / 2 * 8 + g] = __fmul_rn(sum, scale[e % 2]);
      }
    __syncwarp();
#pragma unroll
    for (int t = 0; t < 8; ++t) {
      if (first + t >= shape.tokens) break;
      const i64 line = static_cast<i64>(first + t) * out.channels;
#pragma unroll
      for (int k = 0; k < PER_LANE; ++k) {
        if (channel[k] < 0) continue;
        const float y = __fadd_rn(__fmul_rn(corner[t * STAGING_PITCH + k * 32 + lane], row_scale[k]), bias[k]);
        if (out.type == Type::f32)
          static_cast<float*>(out.y)[line + channel[k]] = y;
        else
          static_cast<u16*>(out.y)[line + channel[k]] = to_bits(y, out.type);
      }
    }
    __syncwarp();
  }
}
