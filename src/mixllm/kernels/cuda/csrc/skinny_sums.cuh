// A piece's sums: a warpgroup's 64 rows by all tokens, weights unpacked in registers while earlier products run.
#pragma once
#include "skinny_ring.cuh"
#include "wgmma.cuh"
#include "wgmma_sums.cuh"

// A slot of a warp's 16 rows as the A operands of four products; what is not there is 0. An 8-bit slot has two. Where
// sums are whole, both widths become unsigned bytes, 128 too much.
__device__ __forceinline__ void unpack_slot(u32 (&a)[4][4], bool eight, bool there, u32 w, u32 zeros, int g) {
  u32 halves[2][2][4] = {};
  if (there && eight) {
    unpack8(load_shared(w), load_shared(w + 512), halves[0]);
    if constexpr (WHOLE_SUM) {
#pragma unroll
      for (int i = 0; i < 8; ++i) halves[0][i / 4][i % 4] ^= SIGNS;
    }
  } else if (there) {
    const u32 both = load_shared_u16(zeros + g * 2);
    const Affine low = WEIGHT_SCALES == 0 ? integer_scale(both & 255u) : zero_only(both & 255u);
    const Affine high = WEIGHT_SCALES == 0 ? integer_scale(both >> 8) : zero_only(both >> 8);
#pragma unroll
    for (int panel = 0; panel < 2; ++panel) unpack4<!WHOLE_SUM>(load_shared(w + panel * 512), low, high, halves[panel]);
  }
#pragma unroll
  for (int step = 0; step < 4; ++step)
#pragma unroll
    for (int i = 0; i < 4; ++i) a[step][i] = halves[step / 2][step % 2][i];
}

// Queues a slot's products with the lines at x.
__device__ __forceinline__ void queue(u32 (&d)[BN / 2], u32 (&a)[4][4], u64 lines, u32 accumulate) {
#pragma unroll
  for (int step = 0; step < 4; ++step) settle(a[step]);
  settle(d);
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < 4; ++step) wgmma<WHOLE_SUM, false, BN>(d, a[step], lines + step * 2, step == 0 ? accumulate : 1u);
  wgmma_commit();
}

// The lane's sums of a piece, at [4 j + 2 h + e] row g + 8 h and token 8 j + 2 c + e; of the share of each stage's slots
// that warpgroups `part` of KG have.
__device__ __forceinline__ void sum_piece(Sum (&sums)[BN / 2], const Segment& s, u32 ring, int x_pitch, Turn& turn, int wm,
                                          int part, int lane) {
  constexpr int SHARE = WK / KG;
  static_assert(SHARE % SETS == 0, "sets of weights take turns");
  u32 a[SETS][4][4], d[BN / 2];
  const int g = lane / 4;
#pragma unroll
  for (int i = 0; i < BN / 2; ++i) sums[i] = 0, d[i] = 0;
  int before = 0;
  // Of the slot before: whether it is to be scaled, and by what.
  bool due = false;
  float row_scale[2] = {0.0f, 0.0f};
  u32 token_scales = 0;
#pragma unroll 1
  for (int slot = s.begin; slot < s.end; slot += WK) {
    const u32 stage = ring + turn.stage * STAGE_BYTES, scales = ring + SCALES_AT + turn.stage * SCALE_STAGE;
    await_stage(ring, turn);
#pragma unroll
    for (int own = 0; own < SHARE; ++own) {
      const int u = part * SHARE + own;
      const bool there = slot + u < s.end;
      const int group = s.eight ? (slot + u) / 2 - slot / 2 : u;
      const u32 meta = scales + wm * SCALE_PITCH + group * (s.eight ? META8 : META4);
      if constexpr (SETS == 1) wgmma_wait<0>();
      unpack_slot(a[own % SETS], s.eight, there, stage + X_BYTES + wm * W_PITCH + u * 1024 + lane * 16, meta + SCALE_BYTES, g);
      const u64 lines = swizzled_tile(stage + group * x_pitch) + (s.eight ? (slot + u) % 2 * 4 : 0);
      if constexpr (WHOLE_SUM) {
        queue(d, a[own % SETS], lines, slot + own > s.begin);
        if constexpr (SETS > 1) wgmma_wait<1>();
      } else {
        const RowScales next = row_scales(meta, g);
        wgmma_wait<0>();
        settle(d);
        if (due) add_scaled<BN>(sums, d, row_scale, token_scales);
        queue(d, a[own % SETS], lines, 0);
        due = there, row_scale[0] = next.s[0], row_scale[1] = next.s[1];
        token_scales = scales + X_SCALES_AT + group * X_SCALE_PITCH + lane % 4 * 8;
      }
      if (own == 0 && slot > s.begin) leave_stage(ring, before, lane);
    }
    before = turn.stage;
    turn.next();
  }
  wgmma_wait<0>();
  settle(d);
  if constexpr (WHOLE_SUM) {
#pragma unroll
    for (int i = 0; i < BN / 2; ++i) sums[i] = d[i];
  } else if (due) {
    add_scaled<BN>(sums, d, row_scale, token_scales);
  }
  leave_stage(ring, before, lane);
}
