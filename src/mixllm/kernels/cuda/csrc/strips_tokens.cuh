// Where a lane's activations are in shared memory, for strips_sums.cuh and strips_held.cuh.
#pragma once
#include "strips_ring.cuh"

// A lane's activations: of tokens 8 j + lane / 4, or of the last one where there are fewer.
struct Tokens {
  u32 line[NJ], scales;
  int shift, stride;

  Tokens() = default;
  // chunk: which one X's turn is.
  __device__ __forceinline__ Tokens(const Arguments& p, const Space& space, int turn, int chunk, int lane) {
    const u32 x = (CHUNKED ? space.x(turn) - chunk * CHUNK * 128 : space.x(0)) + lane % 4 * 16;
#pragma unroll
    for (int j = 0; j < NJ; ++j) line[j] = x + min(j * 8 + lane / 4, p.shape.tokens - 1) * space.x_pitch;
    scales = space.base + X_AT + space.x_bytes + lane % 4 * 8;
    shift = p.x_group_shift, stride = p.x_stride * 4;
  }
  // Its sixteen of inputs 64 n .. 64 n + 63.
  __device__ __forceinline__ Words4 words(int n, int j) const { return load_shared(line[j] + n * 64); }
  // Of token 8 j + 2 (lane % 4) + e; of a token that is not there, whatever lies there.
  __device__ __forceinline__ float scale(int group, int j, int e) const {
    return __uint_as_float(load_shared_u32(scales + (group >> shift) * stride + j * 32 + e * 4));
  }
};
