// X of strips.cu where it comes quantized: all of it at one time, or by chunks.
#pragma once
#include "strips_ring.cuh"

using Given = Arguments;

__device__ __forceinline__ const Arguments& product_of(const Given& given) { return given; }

// Inputs first .. first + bytes - 1 of all tokens, the turn-th that are asked for, and with the first ones X's scales. Each
// block of a cluster asks for some tokens on behalf of all.
__device__ __forceinline__ void ask_for_x(const Given& p, const Space& space, int turn, int first, int bytes) {
  const u32 full = space.base + X_FULL_AT + turn % 2 * 8, x = space.x(turn);
  const int row = p.shape.groups * 128, scales = turn == 0 ? space.x_scale_bytes : 0;
  barrier_expect(full, p.shape.tokens * bytes + scales);
  for (int token = PEERS > 1 ? cluster_rank() : 0; token < p.shape.tokens; token += PEERS)
    copy_to_all<PEERS>(x + token * space.x_pitch, p.x + static_cast<i64>(token) * row + first, bytes, full);
  if (!TOKEN_SCALES && scales > 0) copy_bulk(space.base + X_AT + space.x_bytes, p.x_scales, scales, full);
}

__device__ __forceinline__ void fetch_whole(const Given& p, const Space& space) {
  // The other blocks' barriers must be there.
  if constexpr (PEERS > 1) lane_waits_for_cluster();
  wait_for_earlier_kernels();
  ask_for_x(p, space, 0, 0, p.shape.groups * 128);
}

__device__ __forceinline__ void fetch_chunks(const Given& p, const Strips& strips, const Space& space) {
  const int row = p.shape.groups * 128;
  wait_for_earlier_kernels();
  Strip strip;
  int turn = 0;
  for (int begin = 0; strips.at(begin, strip); begin += BATCH)
    for (int first = 0; first < row; first += CHUNK * 128, ++turn) {
      const int before = turn - ROOMS;
      if (before >= 0) barrier_wait(space.base + X_EMPTY_AT + before % 2 * 8, before / 2 % 2);
      ask_for_x(p, space, turn, first, min(CHUNK * 128, row - first));
    }
}

// All that the lane that fetches X does.
__device__ __forceinline__ void fetch_x(const Given& p, const Strips& strips, const Space& space) {
  if constexpr (CHUNKED)
    fetch_chunks(p, strips, space);
  else
    fetch_whole(p, space);
}

__device__ __forceinline__ void await_x(const Given& p, const Space& space, u8*, int, int) {
  note_tokens<32 * WARPS>(p, space.base + TABLE_AT, threadIdx.x);
  if (!CHUNKED) barrier_wait(space.base + X_FULL_AT, 0);
}
