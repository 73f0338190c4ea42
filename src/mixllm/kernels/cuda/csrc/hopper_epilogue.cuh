// From a warpgroup's accumulators to y: scales, bias, and through shared memory to the original channel order.
//
// A token's 128 rows lie in one line. Where those are neighbours in y, stmatrix turns 8 x 8 values on their way, and a lane
// writes eight of them at once. Else each value goes to its row's slot of the line, in which whole pieces of eight neighbours come
// first (blocks.py): these a lane writes at once, of the others one. So rows of both widths that share a sector of y mostly go
// there together: what an SM sends L2 are sectors, full or not. Two halves of the staging take turns, so there is one
// barrier for 32 tokens.
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

// Where in y a thread's channel is, from its first token on, and how many tokens there are from that on.
struct Column {
  u8* to;
  i64 pitch;
  int left;

  __device__ __forceinline__ Column(const Arguments& p, int token, int channel)
      : pitch(static_cast<i64>(p.out.channels) * 2), left(p.shape.tokens - token) {
    to = static_cast<u8*>(p.out.y) + token * pitch + channel * 2;
  }
};

// What a thread sends of each chunk of tokens: pieces of eight rows that are neighbours in y, sixteen lanes a token.
struct Pieces {
  static constexpr int LANES = BM / 8, AT_ONCE = CONSUMERS * 128 / LANES, ROUNDS = CHUNK / AT_ONCE;
  Words4 words[ROUNDS];
  u32 from;
  Column column;

  __device__ __forceinline__ Pieces(const Arguments& p, const Share64& share, u32 pieces)
      : from(share.thread / LANES * LINE + share.thread % LANES * 16),
        column(p, share.token + share.thread / LANES,
               static_cast<int>(load_shared_u32(share.note + SORTED_AT + share.thread % LANES * 32)) / BM) {
    if (share.thread % LANES >= pieces) column.left = 0;
  }
  __device__ __forceinline__ void fetch(u32 lines) {
#pragma unroll
    for (int round = 0; round < ROUNDS; ++round) words[round] = load_shared(lines + from + round * AT_ONCE * LINE);
  }
  __device__ __forceinline__ void send(int chunk) {
#pragma unroll
    for (int round = 0; round < ROUNDS; ++round, column.to += AT_ONCE * column.pitch)
      if (chunk + round * AT_ONCE < column.left) store_l2(column.to, words[round]);
  }
};

// A row by itself, in this slot: a warp has an eighth of the tokens.
struct Single {
  static constexpr int OWN = CHUNK / (CONSUMERS * 4);
  u32 bits[OWN], from;
  Column column;

  __device__ __forceinline__ Single(const Arguments& p, const Share64& share, int slot)
      : from(share.thread / 32 * OWN * LINE + min(slot, BM - 1) * 2),
        column(p, share.token + share.thread / 32 * OWN,
               static_cast<int>(load_shared_u32(share.note + SORTED_AT + min(slot, BM - 1) * 4)) / BM) {
    const bool there = static_cast<int>(load_shared_u32(share.note + SORTED_AT + min(slot, BM - 1) * 4)) >= 0;
    if (slot >= BM || !there) column.left = 0;
  }
  __device__ __forceinline__ void fetch(u32 lines) {
#pragma unroll
    for (int t = 0; t < OWN; ++t) bits[t] = load_shared_u16(lines + from + t * LINE);
  }
  __device__ __forceinline__ void send(int chunk) {
    u8* to = column.to;
#pragma unroll
    for (int t = 0; t < OWN; ++t, to += column.pitch)
      if (chunk + t < column.left) *reinterpret_cast<u16*>(to) = static_cast<u16>(bits[t]);
    column.to += CHUNK * column.pitch;
  }
};

// A tile's rows that are neighbours in y, all of them.
struct Neighbours {
  static constexpr bool SLOTTED = false;
  Pieces pieces;

  __device__ __forceinline__ Neighbours(const Arguments& p, const Share64& share) : pieces(p, share, BM / 8) {}
  __device__ __forceinline__ void fetch(u32 lines) { pieces.fetch(lines); }
  __device__ __forceinline__ void send(const Arguments&, const Share64&, u32, int chunk) { pieces.send(chunk); }
};

// Rows that are not: pieces, up to 64 rows that are asked for beside them, and what there seldom is more.
struct Mixed {
  static constexpr bool SLOTTED = true;
  int slot;
  Pieces pieces;
  Single near, far;

  __device__ __forceinline__ Mixed(const Arguments& p, const Share64& share)
      : slot(static_cast<int>(load_shared_u32(share.note + PIECES_AT)) * 8 + share.thread % 32),
        pieces(p, share, slot / 8 - share.thread % 32 / 8), near(p, share, slot), far(p, share, slot + 32) {}
  __device__ __forceinline__ void fetch(u32 lines) { pieces.fetch(lines), near.fetch(lines), far.fetch(lines); }
  __device__ __forceinline__ void send(const Arguments& p, const Share64& share, u32 lines, int chunk) {
    pieces.send(chunk), near.send(chunk), far.send(chunk);
#pragma unroll 1
    for (int more = slot + 64; more < BM; more += 32) {
      Single its(p, share, more);
      its.fetch(lines);
      its.column.to += chunk * its.column.pitch;
      its.send(chunk);
    }
  }
};

// Where a thread's values of rows g and g + 8 go in a line that is not in the rows' order.
struct Slots {
  u32 at[2];

  __device__ __forceinline__ explicit Slots(const Share64& share) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = share.thread / 32 * 16 + share.thread % 32 / 4 + 8 * h;
      at[h] = share.staging + share.thread % 4 * 2 * LINE + load_shared_u32(share.note + SLOTS_AT + row * 4) * 2;
    }
  }
};

// Values of a chunk of tokens, as lines: in the rows' order, or each value in its slot.
template <Type TYPE, bool SLOTTED>
__device__ __forceinline__ void stage_chunk(const Sum* sums, const Share64& share, const Pair& pair, const Slots& slots, int chunk) {
  const int warp = share.thread / 32, lane = share.thread % 32;
  const u32 half = chunk / CHUNK % 2 * CHUNK * LINE;
  // Matrix lane / 8 of the four: rows 8 (m % 2), tokens 8 (m / 2); its line lane % 8.
  const u32 corner = share.staging + half + (lane / 16 * 8 + lane % 8) * LINE + warp * 32 + lane / 8 % 2 * 16;
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
    if constexpr (SLOTTED) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const u32 to = slots.at[i % 2] + half + (t + i / 2 * 8) * LINE;
        store_shared_halves(to, to + LINE, packed[i]);
      }
    } else {
      store_transposed(corner + t * LINE, packed);
    }
  }
}

// A chunk's lines are asked for, the next chunk is staged while they come, then they are sent.
template <Type TYPE, typename Sent>
__device__ __forceinline__ void write_narrow(const Sum (&d)[BN / 2], const Arguments& p, const Share64& share,
                                             const Pair& pair) {
  Sent sent(p, share);
  const Slots slots(share);
  const int left = p.shape.tokens - share.token;
  stage_chunk<TYPE, Sent::SLOTTED>(d, share, pair, slots, 0);
#pragma unroll
  for (int chunk = 0; chunk < BN; chunk += CHUNK) {
    if (chunk >= left) break;
    // All have written this half, and so have read the other.
    named_barrier<CONSUMERS * 128>(BOTH_GROUPS);
    const u32 lines = share.staging + chunk / CHUNK % 2 * CHUNK * LINE;
    sent.fetch(lines);
    if (chunk + CHUNK < BN) stage_chunk<TYPE, Sent::SLOTTED>(d + (chunk + CHUNK) / 2, share, pair, slots, chunk + CHUNK);
    sent.send(p, share, lines, chunk);
  }
}

template <Type TYPE>
__device__ __forceinline__ void write_narrow(const Sum (&d)[BN / 2], const Arguments& p, const Share64& share,
                                             const Pair& pair) {
  if (load_shared_u32(share.note + PIECES_AT) == ALL_NEIGHBOURS)
    write_narrow<TYPE, Neighbours>(d, p, share, pair);
  else
    write_narrow<TYPE, Mixed>(d, p, share, pair);
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
