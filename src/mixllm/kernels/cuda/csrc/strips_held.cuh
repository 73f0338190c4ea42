// A strip of strips.cu multiplied by X in registers: each warp has every WARPS-th group, the same of all strips, and so reads
// its tokens once instead of with each strip, which is twice as many bytes as the weights at 16 tokens.
#pragma once
#include "strips_tokens.cuh"

// What consume() multiplies by: groups i WARPS + warp of K or of a chunk, i < HELD, and zeros where there is no such group.
struct Inputs {
  static constexpr int OWN = SLOTS / WARPS;  // slots of a stage that a warp has
  static_assert(OWN % 2 == 0 && HELD % OWN == 0, "a stage of 8-bit slots has whole groups for all warps");
  static_assert(!CHUNKED || CHUNK == HELD * WARPS, "a chunk is what the warps hold");
  Tokens tokens;
  Words4 x[HELD][2][NJ];
  int first, groups;

  // Of a chunk, or of all of K, of which there is room for HELD * WARPS groups.
  __device__ __forceinline__ void enter(const Arguments& p, const Space& space, int turn, int chunk, int warp, int lane) {
    tokens = Tokens(p, space, turn, chunk, lane);
    first = chunk * CHUNK, groups = p.shape.groups - first;
#pragma unroll
    for (int i = 0; i < HELD; ++i)
#pragma unroll
      for (int panel = 0; panel < 2; ++panel)
#pragma unroll
        for (int j = 0; j < NJ; ++j) {
          const int group = i * WARPS + warp;
          x[i][panel][j] = group < groups ? tokens.words((first + group) * 2 + panel, j) : Words4{0, 0, 0, 0};
        }
  }

  template <bool EIGHT>
  __device__ __forceinline__ void add_part(Tile& tile, const Part&, const Space& space, Turn& turn, int warp, int lane) const {
    constexpr int EACH = EIGHT ? OWN / 2 : OWN;  // groups of a stage that a warp has
#pragma unroll
    for (int i = 0; i < HELD; i += EACH) {
      if (i * WARPS >= groups) break;
      const u32 stage = space.stage(turn.stage), empty = space.base + EMPTY_AT + turn.stage * 8;
      barrier_wait(space.base + FULL_AT + turn.stage * 8, turn.parity);
      turn.next(space.stages);
      if constexpr (WHOLE_SUM)
        add_whole<EIGHT, EACH>(tile, i, stage, empty, warp, lane);
      else
        add_scaled<EIGHT, EACH>(tile, i, stage, empty, warp, lane);
    }
  }

  // All of a stage's codes are asked for before the first is multiplied, and the stage is free then. Of a slot that is not
  // there old ones are multiplied by zeros.
  template <bool EIGHT, int EACH>
  __device__ __forceinline__ void add_whole(Tile& tile, int i, u32 stage, u32 empty, int warp, int lane) const {
    constexpr int SLOTS_EACH = EIGHT ? 2 : 1;
    Words4 codes[EACH][SLOTS_EACH][2];
    u32 affine[EACH];
#pragma unroll
    for (int own = 0; own < EACH; ++own) {
      const int u = own * WARPS + warp;
#pragma unroll
      for (int s = 0; s < SLOTS_EACH; ++s) {
        const u32 at = stage + (u * SLOTS_EACH + s) * 1024 + lane * 16;
        codes[own][s][0] = load_shared(at), codes[own][s][1] = load_shared(at + 512);
      }
      if constexpr (!EIGHT) affine[own] = load_shared_u16(stage + SCALES_AT + u * META4 + lane / 4 * 2);
    }
    barrier_arrive(empty);
#pragma unroll
    for (int own = 0; own < EACH; ++own)
#pragma unroll
      for (int panel = 0; panel < 2; ++panel) {
        u32 a[2][4];
        if constexpr (EIGHT)
          unpack8(codes[own][panel][0], codes[own][panel][1], a);
        else
          unpack4<false>(codes[own][0][panel], integer_scale(affine[own] & 255u), integer_scale(affine[own] >> 8), a);
        multiply<!EIGHT>(tile, 0, a, x[i + own][panel]);
      }
  }

  template <bool EIGHT, int EACH>
  __device__ __forceinline__ void add_scaled(Tile& tile, int i, u32 stage, u32 empty, int warp, int lane) const {
    constexpr int SLOTS_EACH = EIGHT ? 2 : 1;
#pragma unroll
    for (int own = 0; own < EACH; ++own) {
      const int u = own * WARPS + warp, group = i * WARPS + u;
      // Old scales may be no numbers.
      if (group >= groups) break;
#pragma unroll
      for (int s = 0; s < SLOTS_EACH; ++s)
        accumulate<EIGHT, true>(
            tile, stage + (u * SLOTS_EACH + s) * 1024 + lane * 16, 0, stage + SCALES_AT + u * (EIGHT ? META8 : META4), 0,
            [&](int panel, int j) { return x[i + own][EIGHT ? s : panel][j]; },
            [&](int j, int e) { return tokens.scale(first + group, j, e); }, [] {}, lane);
    }
    barrier_arrive(empty);
  }
};
