// A stage's weights from shared memory to the A operands of its four products.
//
// Loads wait behind the products that the scheduler's other warp has queued, some 400 cycles: so a warp asks for a
// stage's codes before it queues the products of the stage before, and unpacks them after.
#pragma once
#include "hopper_ring.cuh"
#include "wgmma.cuh"

constexpr bool UNSIGNED_WEIGHTS = TOKEN_SCALES;

// A warp's 16 rows: which of the block's 16-row tiles they are, where a stage has their codes, and their width.
struct Warp16 {
  int tile, lane;
  u32 codes;
  bool eight;
};

// A lane's codes of 128 inputs as they are stored, and its two rows' m and z.
struct Codes {
  Words4 words[4];
  u32 affine;

  // from, meta: where a stage has the lane's codes, and m and z.
  __device__ __forceinline__ void load(u32 from, u32 meta, bool eight) {
    words[0] = load_shared(from), words[1] = load_shared(from + 512);
    if (eight)
      words[2] = load_shared(from + 1024), words[3] = load_shared(from + 1536);
    else if (!UNSIGNED)
      affine = load_shared_u16(meta);
  }
  __device__ __forceinline__ void load(const Warp16& warp, u32 ring, int stage) {
    load(ring + stage * STAGE_BYTES + X_BYTES + warp.codes + warp.lane * 16,
         ring + SCALES_AT + stage * SCALE_STAGE + warp.tile * META4 + SCALE_BYTES + warp.lane / 4 * 2, warp.eight);
  }

  // Operands 2 panel and 2 panel + 1, 64 inputs, of panels FIRST .. LAST. Unsigned bytes are 128 too much, but of UNSIGNED
  // operands 4-bit codes are as they are; there turned: all ones for the complement, 255 or 15 less that.
  template <int FIRST, int LAST>
  __device__ __forceinline__ void unpack(u32 (&a)[4][4], bool eight, u32 turned = 0) const {
    if (eight) {
#pragma unroll
      for (int panel = FIRST; panel < LAST; ++panel) {
        u32 half[2][4];
        unpack8(words[panel * 2], words[panel * 2 + 1], half);
        // Moved, or ptxas moves them for all rows and then overwrites most.
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const u32 word = half[i / 4][i % 4];
          a[panel * 2 + i / 4][i % 4] = UNSIGNED_WEIGHTS ? word ^ SIGNS ^ turned : moved(word);
        }
      }
    } else {
      const Affine low = WEIGHT_SCALES == 0 ? integer_scale(affine & 255u) : zero_only(affine & 255u);
      const Affine high = WEIGHT_SCALES == 0 ? integer_scale(affine >> 8) : zero_only(affine >> 8);
#pragma unroll
      for (int panel = FIRST; panel < LAST; ++panel) {
        u32 half[2][4];
        if constexpr (UNSIGNED)
          nibbles(words[panel], turned, half);
        else
          unpack4<!UNSIGNED_WEIGHTS>(words[panel], low, high, half);
#pragma unroll
        for (int i = 0; i < 8; ++i) a[panel * 2 + i / 4][i % 4] = half[i / 4][i % 4];
      }
    }
  }
};

// Queues products of inputs 32 FIRST .. 32 LAST of a stage and N tokens, whose lines begin at x. first: 0 starts sums.
template <int N, int FIRST, int LAST>
__device__ __forceinline__ void start(u32 (&d)[N / 2], u32 (&a)[4][4], u32 x, u32 accumulate) {
  const u64 lines = swizzled_tile(x);
#pragma unroll
  for (int step = FIRST; step < LAST; ++step) settle(a[step]);
  settle(d);
  wgmma_fence();
#pragma unroll
  for (int step = FIRST; step < LAST; ++step) wgmma<UNSIGNED_WEIGHTS, UNSIGNED, N>(d, a[step], lines + step * 2, step == 0 ? accumulate : 1u);
  wgmma_commit();
}

// Queues products of a stage's bfloat16s with all tokens, whose lines begin at x: they are added to f.
__device__ __forceinline__ void start_bfloats(float (&f)[BN / 2], u32 (&a)[4][4], u32 x) {
#pragma unroll
  for (int step = 0; step < 4; ++step) settle(a[step]);
  settle(f);
  wgmma_fence();
#pragma unroll
  for (int token = 0; token < BN; token += 64) {
    const u64 lines = swizzled_tile(x + token * 128);
#pragma unroll
    for (int step = 0; step < 4; ++step) wgmma_bfloat(*reinterpret_cast<float(*)[32]>(f + token / 2), a[step], lines + step * 2, 1);
  }
  wgmma_commit();
}
