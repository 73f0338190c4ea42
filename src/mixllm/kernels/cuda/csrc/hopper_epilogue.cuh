// From a warpgroup's accumulators to y: scales, bias, and through shared memory to the original channel order.
//
// stmatrix turns 8 x 8 values on their way, so a token's 128 rows lie in one line. Where those are neighbours in y a lane
// writes eight of them at once. Else it writes one, in y's order: an SM sends L2 a 32-byte sector a cycle, full or
// not, and rows of both widths that share a sector go there together. Two halves of the staging take turns, so there
// is one barrier for 32 tokens.
#pragma once
#include "hopper_notes.cuh"
#include "wgmma_sums.cuh"

// A warpgroup's share of a tile; thread: of the block's 256 that compute.
struct Share64 {
  u32 note, staging;
  int token, thread;
};
constexpr int BOTH_GROUPS = 1, ONE_GROUP = 2;  // named barriers; the second warpgroup's own is the next

// Scale (of UNSIGNED operands what a sum has too much) and bias of rows g and g + 8 of a warp.
struct Pair {
  float scale[2], bias[2];

  __device__ __forceinline__ Pair(u32 note, int row) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      u32 s, b;
      load_shared_pair(note + FACTORS_AT + (row + 8 * h) * 8, s, b);
      scale[h] = __uint_as_float(s), bias[h] = __uint_as_float(b);
    }
  }
};

// Values of rows g + 8 h and tokens 8 j + 2 c + e, at [2 h + e].
__device__ __forceinline__ void finished(float (&y)[4], const Sum* sums, const Pair& pair, Words4 tokens) {
  const float scale[2] = {__uint_as_float(tokens.x), __uint_as_float(tokens.z)};
  const int excess[2] = {static_cast<int>(tokens.y), static_cast<int>(tokens.w)};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float sum = WHOLE_SUM ? static_cast<float>(static_cast<int>(sums[i]) - excess[i % 2]) : sums[i];
    if constexpr (UNSIGNED) sum -= pair.scale[i / 2];
    const float row_scale = UNSIGNED ? 1.0f : pair.scale[i / 2];
    y[i] = __fadd_rn(__fmul_rn(__fmul_rn(sum, scale[i % 2]), row_scale), pair.bias[i / 2]);
  }
}

// What a thread sends of a chunk of tokens whose rows are neighbours in y: sixteen lanes a token.
struct Neighbours {
  static constexpr int LANES = BM / 8, AT_ONCE = CONSUMERS * 128 / LANES, ROUNDS = CHUNK / AT_ONCE;
  Words4 words[ROUNDS];
  int channel, first;

  __device__ __forceinline__ explicit Neighbours(const Share64& share)
      : channel(static_cast<int>(load_shared_u32(share.note + CHANNELS_AT)) + share.thread % LANES * 8),
        first(share.thread / LANES) {}
  __device__ __forceinline__ void fetch(u32 lines, const Share64& share) {
#pragma unroll
    for (int round = 0; round < ROUNDS; ++round)
      words[round] = load_shared(lines + (round * AT_ONCE + first) * LINE + share.thread % LANES * 16);
  }
  __device__ __forceinline__ void send(const Arguments& p, int token) const {
    const int count = p.shape.tokens - token;
    u16* to = static_cast<u16*>(p.out.y) + static_cast<i64>(token) * p.out.channels + channel;
#pragma unroll
    for (int t = first, round = 0; round < ROUNDS; ++round, t += AT_ONCE)
      if (t < count) store_l2(to + static_cast<i64>(t) * p.out.channels, words[round]);
  }
};

// The same where they are not: a warp has a quarter of the tokens and 64 of the sorted rows, a lane two of those.
struct Scattered {
  static constexpr int OWN = CHUNK / 4;
  u32 sorted[2], bits[2][OWN];
  int first;

  __device__ __forceinline__ explicit Scattered(const Share64& share) : first(share.thread / 32 / CONSUMERS * OWN) {
    const int row = share.thread / 32 % CONSUMERS * 64 + share.thread % 32;
    sorted[0] = load_shared_u32(share.note + SORTED_AT + row * 4);
    sorted[1] = load_shared_u32(share.note + SORTED_AT + row * 4 + 128);
  }
  __device__ __forceinline__ void fetch(u32 lines, const Share64&) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int t = 0; t < OWN; ++t) bits[i][t] = load_shared_u16(lines + (first + t) * LINE + sorted[i] % BM * 2);
  }
  __device__ __forceinline__ void send(const Arguments& p, int token) const {
    const int count = p.shape.tokens - token - first;
    const i64 pitch = p.out.channels;
    u16* y = static_cast<u16*>(p.out.y) + (token + first) * pitch;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (sorted[i] == ~0u) continue;
      u16* to = y + (sorted[i] >> ROW_BITS);
#pragma unroll
      for (int t = 0; t < OWN; ++t, to += pitch)
        if (t < count) *to = static_cast<u16>(bits[i][t]);
    }
  }
};

// Values of a chunk of tokens, as lines.
template <Type TYPE>
__device__ __forceinline__ void stage_chunk(const Sum* sums, const Share64& share, const Pair& pair, int chunk) {
  const int warp = share.thread / 32, lane = share.thread % 32;
  // Matrix lane / 8 of the four: rows 8 (m % 2), tokens 8 (m / 2); its line lane % 8.
  const u32 corner = share.staging + chunk / CHUNK % 2 * CHUNK * LINE + (lane / 16 * 8 + lane % 8) * LINE + warp * 32 +
                     lane / 8 % 2 * 16;
  Words4 tokens[CHUNK / 8];
#pragma unroll
  for (int j = 0; j < CHUNK / 8; ++j)
    tokens[j] = load_shared(share.note + TOKENS_AT + (chunk + j * 8 + lane % 4 * 2) * 8);
#pragma unroll
  for (int t = 0; t < CHUNK; t += 16) {
    u32 packed[4];
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const int j = t / 8 + side;
      float y[4];
      finished(y, sums + j * 4, pair, tokens[j]);
      packed[side * 2] = to_pair<TYPE>(y[0], y[1]), packed[side * 2 + 1] = to_pair<TYPE>(y[2], y[3]);
    }
    store_transposed(corner + t * LINE, packed);
  }
}

// A chunk's lines are asked for, the next chunk is staged while they come, then they are sent.
template <Type TYPE, typename Sent>
__device__ __forceinline__ void write_narrow(const Sum (&d)[BN / 2], const Arguments& p, const Share64& share,
                                             const Pair& pair) {
  Sent sent(share);
  const int left = p.shape.tokens - share.token;
  stage_chunk<TYPE>(d, share, pair, 0);
#pragma unroll
  for (int chunk = 0; chunk < BN; chunk += CHUNK) {
    if (chunk >= left) break;
    // All have written this half, and so have read the other.
    named_barrier<CONSUMERS * 128>(BOTH_GROUPS);
    sent.fetch(share.staging + chunk / CHUNK % 2 * CHUNK * LINE, share);
    if (chunk + CHUNK < BN) stage_chunk<TYPE>(d + (chunk + CHUNK) / 2, share, pair, chunk + CHUNK);
    sent.send(p, share.token + chunk);
  }
}

template <Type TYPE>
__device__ __forceinline__ void write_narrow(const Sum (&d)[BN / 2], const Arguments& p, const Share64& share,
                                             const Pair& pair) {
  if (load_shared_u32(share.note + DENSE_AT))
    write_narrow<TYPE, Neighbours>(d, p, share, pair);
  else
    write_narrow<TYPE, Scattered>(d, p, share, pair);
}

// float32 goes out as it lies in the registers: it is no one's fast path.
__device__ __forceinline__ void write_wide(const Sum (&d)[BN / 2], const Arguments& p, const Share64& share,
                                           const Pair& pair) {
  const int c = share.thread % 4, row = share.thread / 32 * 16 + share.thread % 32 / 4;
  const int channel[2] = {static_cast<int>(load_shared_u32(share.note + CHANNELS_AT + row * 4)),
                          static_cast<int>(load_shared_u32(share.note + CHANNELS_AT + row * 4 + 32))};
#pragma unroll
  for (int j = 0; j < BN / 8; ++j) {
    float y[4];
    finished(y, d + j * 4, pair, load_shared(share.note + TOKENS_AT + (j * 8 + c * 2) * 8));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int token = share.token + j * 8 + c * 2 + i % 2;
      if (token < p.shape.tokens && channel[i / 2] >= 0)
        static_cast<float*>(p.out.y)[static_cast<i64>(token) * p.out.channels + channel[i / 2]] = y[i];
    }
  }
}

__device__ __forceinline__ void write(const Sum (&d)[BN / 2], const Arguments& p, const Share64& share) {
  const Pair pair(share.note, share.thread / 32 * 16 + share.thread % 32 / 4);
  if (p.out.type == Type::bf16)
    write_narrow<Type::bf16>(d, p, share, pair);
  else if (p.out.type == Type::f16)
    write_narrow<Type::f16>(d, p, share, pair);
  else
    write_wide(d, p, share, pair);
  // The next tile begins with the first half again, which others may still read.
  named_barrier<CONSUMERS * 128>(BOTH_GROUPS);
}
