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

// Scale and bias of rows g and g + 8 of a warp.
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
    const float sum = WHOLE_SUM ? static_cast<float>(static_cast<int>(sums[i]) - excess[i % 2]) : sums[i];
    y[i] = __fadd_rn(__fmul_rn(__fmul_rn(sum, scale[i % 2]), pair.scale[i / 2]), pair.bias[i / 2]);
  }
}

// Lines of a chunk's tokens to y where the rows are neighbours: sixteen lanes a token.
__device__ __forceinline__ void send_dense(const Arguments& p, u32 lines, int token, int channel, int thread) {
  const int count = p.shape.tokens - token, part = thread % 16;
  u16* to = static_cast<u16*>(p.out.y) + static_cast<i64>(token) * p.out.channels + channel + part * 8;
#pragma unroll
  for (int round = 0; round < CHUNK; round += 16) {
    const int t = round + thread / 16;
    if (t < count) store_l2(to + static_cast<i64>(t) * p.out.channels, load_shared(lines + t * LINE + part * 16));
  }
}

// The same where they are not: a warp has an eighth of the tokens, a lane every 32nd of the sorted rows.
__device__ __forceinline__ void send(const Arguments& p, u32 lines, int token, const u32 (&sorted)[BM / 32], int warp) {
  constexpr int OWN = CHUNK / 8;
  const int first = token + warp * OWN, count = min(p.shape.tokens - first, OWN);
  const i64 pitch = p.out.channels;
  u16* y = static_cast<u16*>(p.out.y) + first * pitch;
#pragma unroll
  for (int i = 0; i < BM / 32; ++i) {
    if (sorted[i] == ~0u) continue;
    const u32 from = lines + warp * OWN * LINE + sorted[i] % BM * 2;
    u16* to = y + (sorted[i] >> ROW_BITS);
    u32 bits[OWN];
#pragma unroll
    for (int t = 0; t < OWN; ++t) bits[t] = load_shared_u16(from + t * LINE);
#pragma unroll
    for (int t = 0; t < OWN; ++t, to += pitch)
      if (t < count) *to = static_cast<u16>(bits[t]);
  }
}

template <Type TYPE>
__device__ __forceinline__ void write_narrow(const Sum (&d)[BN / 2], const Arguments& p, const Share64& share,
                                             const Pair& pair) {
  const int warp = share.thread / 32, lane = share.thread % 32;
  const bool dense = load_shared_u32(share.note + DENSE_AT);
  const int channel = static_cast<int>(load_shared_u32(share.note + CHANNELS_AT));
  u32 sorted[BM / 32];
#pragma unroll
  for (int i = 0; i < BM / 32; ++i) sorted[i] = load_shared_u32(share.note + SORTED_AT + (i * 32 + lane) * 4);
  // Matrix lane / 8 of the four: rows 8 (m % 2), tokens 8 (m / 2); its line lane % 8.
  const u32 corner = share.staging + (lane / 16 * 8 + lane % 8) * LINE + warp * 32 + lane / 8 % 2 * 16;
#pragma unroll
  for (int chunk = 0; chunk < BN; chunk += CHUNK) {
    const int half = chunk / CHUNK % 2 * CHUNK * LINE;
    if (share.token + chunk >= p.shape.tokens) break;
#pragma unroll
    for (int t = 0; t < CHUNK; t += 16) {
      u32 packed[4];
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        const int j = (chunk + t) / 8 + side;
        float y[4];
        finished(y, d + j * 4, pair, load_shared(share.note + TOKENS_AT + (j * 8 + lane % 4 * 2) * 8));
        packed[side * 2] = to_pair<TYPE>(y[0], y[1]), packed[side * 2 + 1] = to_pair<TYPE>(y[2], y[3]);
      }
      store_transposed(corner + half + t * LINE, packed);
    }
    // All have written this half, and so have read the other.
    named_barrier<CONSUMERS * 128>(BOTH_GROUPS);
    if (dense)
      send_dense(p, share.staging + half, share.token + chunk, channel, share.thread);
    else
      send(p, share.staging + half, share.token + chunk, sorted, warp);
  }
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
