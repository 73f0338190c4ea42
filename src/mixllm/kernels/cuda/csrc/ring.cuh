// A warp's own ring of stages in shared memory, filled far ahead of use.
//
// From sm_90 on one lane hands whole pieces to the bulk copy engine, which counts the bytes that arrive on the stage's
// mbarrier; before, every lane copies 16 bytes at a time and stages finish in order. Both ways a stage is filled again
// as soon as the warp has read it, so that STAGES are on their way at any time.
#pragma once
#include "ptx.cuh"

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
      for (int stage = 0; stage < STAGES_THERE; ++stage)
        asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(barriers + stage * 8) : "memory");
      // The copy engine must see them too.
      asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncwarp();
#endif
  }

  // Says how many bytes a filling has in all, before the first copy.
  __device__ __forceinline__ void expect(int stage, int bytes) const {
#if __CUDA_ARCH__ >= 900
    if (lane == 0)
      asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barriers + stage * 8), "r"(bytes) : "memory");
#endif
  }

  // Up to MOST bytes, a multiple of 16, to `at` in the stage.
  template <int MOST>
  __device__ __forceinline__ void copy(int stage, int at, const u8* from, int bytes) const {
    const u32 to = data + stage * STAGE_SIZE + at;
#if __CUDA_ARCH__ >= 900
    if (lane == 0)
      asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                   "l"(from), "r"(bytes), "r"(barriers + stage * 8)
                   : "memory");
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
    asm volatile(
        "{\n"
        ".reg .pred there;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared.b64 there, [%0], %1;\n"
        "@there bra done;\n"
        "bra again;\n"
        "done:\n"
        "}" ::"r"(barriers + stage * 8),
        "r"(parity)
        : "memory");
#else
    copy_wait<STAGES_THERE - 1>();
    __syncwarp();
#endif
  }
};
