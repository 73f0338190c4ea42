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

struct Arguments {
  const u8* codes8;        // [rows8 / 16][2 groups][1024]
  const u8* codes4;        // [rows4 / 16][groups][1024]
  const u8* scales8;       // [rows8 / 16][groups][META8]; see accumulate.cuh
  const u8* scales4;       // [rows4 / 16][groups][META4]
  const i8* x;             // [tokens][128 groups]
  const float* x_scales;   // [activation groups][x_stride]
  int* partials;           // [blocks][BM * BN]
  int* flags;              // [blocks], 0 before and after
  Outputs out;
  Shape shape;
  int x_stride;
  int x_group_shift;       // weight groups in an activation group, log2
  const int* blocks;       // hopper.cu only; see blocks.py, and behind that excess.py
};

// Who hands over partial sums together: a whole block (gemm.cu), or each warp for itself (decode.cu).
struct Party {
  int count;     // parties in a block
  int index;     // this one
  int threads;   // that hold sums
  int thread;    // this one
  bool holds;    // this thread holds sums
  bool warp;     // a warp by itself, else a block
  __device__ __forceinline__ void sync() const { warp ? __syncwarp() : __syncthreads(); }
  __device__ __forceinline__ int slot(int block) const { return block * count + index; }
};

// This party has the beginning or the middle of a tile: its owner, in a later block, will want the sums.
template <int MI, int NJ>
__device__ __forceinline__ void give_partials(const Accumulators<MI, NJ>& tile, const Arguments& p, const Party& party) {
  if (party.holds) {
    Words4* to = reinterpret_cast<Words4*>(p.partials) +
                 static_cast<i64>(party.slot(blockIdx.x)) * (MI * NJ * party.threads) + party.thread;
#pragma unroll
    for (int i = 0; i < MI; ++i)
#pragma unroll
      for (int j = 0; j < NJ; ++j) store_l2(to + (i * NJ + j) * party.threads, tile.words(i, j));
  }
  // The barrier and the flag's release together order all of the party's sums before it.
  party.sync();
  if (party.thread == 0 && party.holds) raise_flag(p.flags + party.slot(blockIdx.x));
}

// This party has the end of a tile: add what the blocks before it have, nearest first, and lower their flags.
template <int MI, int NJ, typename Plan>
__device__ __forceinline__ void take_partials(Accumulators<MI, NJ>& tile, const Arguments& p, const Plan& schedule,
                                              int index, const Party& party) {
  int tile_after = index, slot_after = schedule.share.first_slot;
  for (int block = blockIdx.x - 1;; --block) {
    int first_tile, first_slot;
    schedule.start_of(block, first_tile, first_slot);
    // With fewer slots than blocks some blocks have none.
    if (first_tile != tile_after || first_slot != slot_after) {
      int* flag = p.flags + party.slot(block);
      const bool first = party.thread == 0 && party.holds;
      if (first) {
        while (read_flag(flag) == 0) {
        }
      }
      party.sync();
      if (party.holds) {
        const Words4* from = reinterpret_cast<const Words4*>(p.partials) +
                             static_cast<i64>(party.slot(block)) * (MI * NJ * party.threads) + party.thread;
#pragma unroll
        for (int i = 0; i < MI; ++i)
#pragma unroll
          for (int j = 0; j < NJ; ++j) tile.add(i, j, load_l2(from + (i * NJ + j) * party.threads));
      }
      if (first) *flag = 0;
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

constexpr int PER_LANE = (WARP_ROWS + 31) / 32;

// What a lane must know of its rows; asked for before the sums are complete, since it takes a while to come.
struct Rows {
  int channel[PER_LANE];
  float bias[PER_LANE], scale[PER_LANE];

  __device__ __forceinline__ Rows(const Arguments& p, const Segment& s, int wm, int lane) {
    const int row16 = s.row16 + wm * (WARP_ROWS / 16), left = (s.eight ? p.shape.rows8 : p.shape.rows4) - row16;
    const int row = (row16 + (s.eight ? 0 : p.shape.rows8)) * 16;
#pragma unroll
    for (int k = 0; k < PER_LANE; ++k) {
      const int r = k * 32 + lane;
      const bool inside = r < WARP_ROWS && r / 16 < left;
      channel[k] = inside ? p.out.rows[row + r] : -1;
      scale[k] = WEIGHT_SCALES == 0 && inside ? p.out.row_scales[row + r] : 1.0f;
    }
#pragma unroll
    for (int k = 0; k < PER_LANE; ++k) bias[k] = channel[k] >= 0 ? bias_of(p.out, channel[k]) : 0.0f;
  }
};

// What a lane must know of a token: its scale, and what unsigned bytes put too much into its sums.
struct Token {
  float scale = 1.0f;
  int excess = 0;

  Token() = default;
  __device__ __forceinline__ Token(const Arguments& p, int token) {
    if (token >= p.shape.tokens) return;
    if (TOKEN_SCALES) scale = p.x_scales[token];
    if (WHOLE_SUM) excess = p.out.x_sums[token] * 128;
  }
};

// token(j, e) is what must be known of token 8 j + 2 (lane % 4) + e of the warp's tile.
template <int MI, int NJ, typename Tokens>
__device__ __forceinline__ void write_tile(const Accumulators<MI, NJ>& tile, const Arguments& p, const Rows& rows,
                                           Tokens token, int first_token, bool eight, int lane, u8* staging) {
  float* corner = reinterpret_cast<float*>(staging);
  const Outputs& out = p.out;
  const int g = lane / 4, c = lane % 4, tokens = p.shape.tokens;
#pragma unroll
  for (int j = 0; j < NJ; ++j) {
    const int first = first_token + j * 8;
    if (first >= tokens) break;
    const Token both[2] = {token(j, 0), token(j, 1)};
#pragma unroll
    for (int i = 0; i < MI; ++i)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int bits = tile.v[i][j][e];
        const float sum = WHOLE_SUM ? static_cast<float>(bits - (eight ? 0 : both[e % 2].excess)) : __int_as_float(bits);
        corner[(c * 2 + e % 2) * STAGING_PITCH + i * 16 + e / 2 * 8 + g] = __fmul_rn(sum, both[e % 2].scale);
      }
    __syncwarp();
#pragma unroll
    for (int t = 0; t < 8; ++t) {
      if (first + t >= tokens) break;
      const i64 line = static_cast<i64>(first + t) * out.channels;
#pragma unroll
      for (int k = 0; k < PER_LANE; ++k) {
        if (rows.channel[k] < 0) continue;
        const float sum = corner[t * STAGING_PITCH + k * 32 + lane];
        const float y = __fadd_rn(__fmul_rn(sum, rows.scale[k]), rows.bias[k]);
        if (out.type == Type::f32)
          static_cast<float*>(out.y)[line + rows.channel[k]] = y;
        else
          static_cast<u16*>(out.y)[line + rows.channel[k]] = to_bits(y, out.type);
      }
    }
    __syncwarp();
  }
}
