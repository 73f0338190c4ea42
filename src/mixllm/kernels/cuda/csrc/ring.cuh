// A warp's own ring of stages in shared memory, filled far ahead of use.
//
// From sm_90 on one lane hands whole pieces to the bulk copy engine, which counts the bytes that arrive on the stage's
// mbarrier; before, every lane copies 16 bytes at a time and stages finish in order. Both ways a stage is filled again
// as soon as the warp has read it, so that STAGES are on their way at any time.
#pragma once
#include "bulk.cuh"

#if __CUDA_ARCH__ >= 900
constexpr int BARRIER_BYTES = 8;
#else
constexpr int BARRIER_BYTES = 0;
#endif

template <int STAGES_THERE, int STAGE_SIZE>
struct Ring {
  u32 data, barriers;
  int lane;

  __device__ __forceinline__ Ring(u32 data, u32 barriers, int lane) : data(data), barriers(barriers), lane(lane) {
#if __CUDA_ARCH__ >= 900
    if (lane == 0) {
#pragma unroll
      for (int stage = 0; stage < STAGES_THERE; ++stage) barrier_init(barriers + stage * 8, 1);
      barriers_made();
    }
    __syncwarp();
#endif
  }

  // Says how many bytes a filling has in all, before the first copy.
  __device__ __forceinline__ void expect(int stage, int bytes) const {
#if __CUDA_ARCH__ >= 900
    if (lane == 0) barrier_expect(barriers + stage * 8, bytes);
#endif
  }

  // Up to MOST bytes, a multiple of 16, to `at` in the stage.
  template <int MOST>
  __device__ __forceinline__ void copy(int stage, int at, const u8* from, int bytes) const {
    const u32 to = data + stage * STAGE_SIZE + at;
#if __CUDA_ARCH__ >= 900
    if (lane == 0) copy_bulk(to, from, bytes, barriers + stage * 8);
#else
#pragma unroll
    for (int first = 0; first < MOST; first += 512)
      if (first + lane * 16 < bytes) copy_async(to + first + lane * 16, from + first + lane * 16);
#endif
  }

  // Ends a filling, also an empty one.
  __device__ __forceinline__ void commit() const {
#if __CUDA_ARCH__ < 900
    copy_commit();
#endif
  }

  // The oldest filling is there; parity is that of the number of earlier fillings of the stage.
  __device__ __forceinline__ void wait(int stage, u32 parity) const {
#if __CUDA_ARCH__ >= 900
    barrier_wait(barriers + stage * 8, parity);
#else
    copy_wait<STAGES_THERE - 1>();
    __syncwarp();
#endif
  }
};
