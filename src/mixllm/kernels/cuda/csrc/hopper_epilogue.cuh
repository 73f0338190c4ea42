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

// What a thread sends of a chunk of tokens: pieces of eight rows that are neighbours in y, sixteen lanes a token.
struct Pieces {
  static constexpr int LANES = BM / 8, AT_ONCE = CONSUMERS * 128 / LANES, ROUNDS = CHUNK / AT_ONCE;
  Words4 words[ROUNDS];
  int channel, first;
  bool there;

  __device__ __forceinline__ explicit Pieces(const Share64& share, u32 pieces)
      : channel(static_cast<int>(load_shared_u32(share.note + SORTED_AT + share.thread % LANES * 32)) / BM),
        first(share.thread / LANES), there(share.thread % LANES < pieces) {}
  __device__ __forceinline__ void fetch(u32 lines, const Share64& share) {
#pragma unroll
    for (int round = 0; round < ROUNDS; ++round)
      words[round] = load_shared(lines + (round * AT_ONCE + first) * LINE + share.thread % LANES * 16);
  }
  __device__ __forceinline__ void send(const Arguments& p, int token) const {
    const int count = there ? p.shape.tokens - token : 0;
    u16* to = static_cast<u16*>(p.out.y) + static_cast<i64>(token) * p.out.channels + channel;
#pragma unroll
    for (int t = first, round = 0; round < ROUNDS; ++round, t += AT_ONCE)
      if (t < count) store_l2(to + static_cast<i64>(t) * p.out.channels, words[round]);
  }
};

// Rows by themselves, every 32nd slot from `slot` on: a warp has an eighth of the tokens.
struct Singles {
  static constexpr int OWN = CHUNK / (CONSUMERS * 4);
  u32 bits[OWN];
  int line, slot, first;

  __device__ __forceinline__ Singles(const Share64& share, int slot)
      : line(slot < BM ? static_cast<int>(load_shared_u32(share.note + SORTED_AT + slot * 4)) : -1), slot(min(slot, BM - 1)),
        first(share.thread / 32 * OWN) {}
  __device__ __forceinline__ void fetch(u32 lines) {
#pragma unroll
    for (int t = 0; t < OWN; ++t) bits[t] = load_shared_u16(lines + (first + t) * LINE + slot * 2);
  }
  __device__ __forceinline__ void send(const Arguments& p, int token) const {
    if (line < 0) return;
    const int count = p.shape.tokens - token - first;
    const i64 pitch = p.out.channels;
    u16* to = static_cast<u16*>(p.out.y) + (token + first) * pitch + line / BM;
#pragma unroll
    for (int t = 0; t < OWN; ++t, to += pitch)
      if (t < count) *to = static_cast<u16>(bits[t]);
  }
};

// A tile's rows that are neighbours in y, all of them.
struct Neighbours {
  static constexpr bool SLOTTED = false;
  Pieces pieces;

  __device__ __forceinline__ explicit Neighbours(const Share64& share) : pieces(share, BM / 8) {}
  __device__ __forceinline__ void fetch(u32 lines, const Share64& share) { pieces.fetch(lines, share); }
  __device__ __forceinline__ void send(const Arguments& p, u32, const Share64&, int token) const { pieces.send(p, token); }
};

// Rows that are not: pieces, two rows a lane that are asked for beside them, and what there seldom is more.
struct Mixed {
  static constexpr bool SLOTTED = true;
  Pieces pieces;
  Singles near, far;
  int rest;

  __device__ __forceinline__ explicit Mixed(const Share64& share) : Mixed(share, load_shared_u32(share.note + PIECES_AT)) {}
  __device__ __forceinline__ void fetch(u32 lines, const Share64& share) {
    pieces.fetch(lines, share), near.fetch(lines), far.fetch(lines);
  }
  __device__ __forceinline__ void send(const Arguments& p, u32 lines, const Share64& share, int token) const {
    pieces.send(p, token), near.send(p, token), far.send(p, token);
#pragma unroll 1
    for (int slot = rest; slot < BM; slot += 32) {
      Singles more(share, slot);
      more.fetch(lines);
      more.send(p, token);
    }
  }

 private:
  __device__ __forceinline__ Mixed(const Share64& share, u32 count)
      : pieces(share, count), near(share, count * 8 + share.thread % 32), far(share, near.slot + 32),
        rest(count * 8 + share.thread % 32 + 64) {}
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
        store_shared_u16(to, packed[i]), store_shared_u16(to + LINE, packed[i] >> 16);
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
  Sent sent(share);
  const Slots slots(share);
  const int left = p.shape.tokens - share.token;
  stage_chunk<TYPE, Sent::SLOTTED>(d, share, pair, slots, 0);
#pragma unroll
  for (int chunk = 0; chunk < BN; chunk += CHUNK) {
    if (chunk >= left) break;
    // All have written this half, and so have read the other.
    named_barrier<CONSUMERS * 128>(BOTH_GROUPS);
    const u32 lines = share.staging + chunk / CHUNK % 2 * CHUNK * LINE;
    sent.fetch(lines, share);
    if (chunk + CHUNK < BN) stage_chunk<TYPE, Sent::SLOTTED>(d + (chunk + CHUNK) / 2, share, pair, slots, chunk + CHUNK);
    sent.send(p, lines, share, share.token + chunk);
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
