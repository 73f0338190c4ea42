// A strip of strips.cu multiplied by X in shared memory.
#pragma once
#include "strips_tokens.cuh"

// What a lane needs of a slot where sums are whole: asked for before the slot before is multiplied.
template <bool EIGHT>
struct Slot {
  static constexpr int PANELS = EIGHT ? 1 : 2;  // of 64 inputs
  Words4 codes[2], x[PANELS][NJ];
  u32 affine;

  // w: where the lane's codes are; scales: its tile's; number: of the slot in its row.
  __device__ __forceinline__ void load(const Tokens& tokens, u32 w, u32 scales, int number, int lane) {
    codes[0] = load_shared(w), codes[1] = load_shared(w + 512);
    if constexpr (!EIGHT) affine = load_shared_u16(scales + lane / 4 * 2);
#pragma unroll
    for (int panel = 0; panel < PANELS; ++panel)
#pragma unroll
      for (int j = 0; j < NJ; ++j) x[panel][j] = tokens.words(number * PANELS + panel, j);
  }
  __device__ __forceinline__ void add_to(Tile& tile) const {
    u32 a[2][4];
    if constexpr (EIGHT) {
      unpack8(codes[0], codes[1], a);
      multiply<false>(tile, 0, a, x[0]);
    } else {
      const Affine low = integer_scale(affine & 255u), high = integer_scale(affine >> 8);
#pragma unroll
      for (int panel = 0; panel < PANELS; ++panel) {
        unpack4<false>(codes[panel], low, high, a);
        multiply<true>(tile, 0, a, x[panel]);
      }
    }
  }
};

// A warp's share of a stage that has `count` slots, the strip's slot `first` the first.
template <bool EIGHT>
__device__ __forceinline__ void add_stage(Tile& tile, const Tokens& x, u32 stage, int first, int count, int warp, int lane) {
  constexpr int OWN = SLOTS / WARPS;
  const u32 w = stage + lane * 16, scales = stage + SCALES_AT;
  const auto scales_of = [&](int u) { return scales + (EIGHT ? u / 2 * META8 : u * META4); };
  if constexpr (WHOLE_SUM) {
    Slot<EIGHT> slots[OWN];
    if (count == SLOTS) {
#pragma unroll
      for (int own = 0; own < OWN; ++own) {
        const int u = own * WARPS + warp;
        slots[own].load(x, w + u * 1024, scales_of(u), first + u, lane);
      }
#pragma unroll
      for (int own = 0; own < OWN; ++own) slots[own].add_to(tile);
      return;
    }
  }
  const auto add = [&](int u) {
    if constexpr (WHOLE_SUM) {
      Slot<EIGHT> slot;
      slot.load(x, w + u * 1024, scales_of(u), first + u, lane);
      slot.add_to(tile);
    } else {
      const int n = (first + u) * (EIGHT ? 1 : 2);
      accumulate<EIGHT, true>(
          tile, w + u * 1024, 0, scales_of(u), 0, [&](int panel, int j) { return x.words(n + panel, j); },
          [&](int j, int e) { return x.scale(n / 2, j, e); }, [] {}, lane);
    }
  };
  // In a row, so that a slot's loads are asked for before the sums of the one before are there.
  if (!WHOLE_SUM && count == SLOTS) {
#pragma unroll
    for (int own = 0; own < OWN; ++own) add(own * WARPS + warp);
    return;
  }
#pragma unroll 1
  for (int u = warp; u < count; u += WARPS) add(u);
}

// What consume() multiplies by: X where it lies.
struct Inputs {
  Tokens tokens;

  // Of a chunk, or of all of K.
  __device__ __forceinline__ void enter(const Arguments& p, const Space& space, int turn, int chunk, int, int lane) {
    tokens = Tokens(p, space, turn, chunk, lane);
  }
  template <bool EIGHT>
  __device__ __forceinline__ void add_part(Tile& tile, const Part& part, const Space& space, Turn& turn, int warp, int lane) const {
    for (int first = part.begin; first < part.end; first += SLOTS) {
      barrier_wait(space.base + FULL_AT + turn.stage * 8, turn.parity);
      add_stage<EIGHT>(tile, tokens, space.stage(turn.stage), first, min(SLOTS, part.end - first), warp, lane);
      __syncwarp();
      barrier_arrive(space.base + EMPTY_AT + turn.stage * 8);
      turn.next(space.stages);
    }
  }
};
