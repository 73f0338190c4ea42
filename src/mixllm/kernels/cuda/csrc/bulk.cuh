// sm_90's bulk copies and the barriers in shared memory that count their bytes.
#pragma once
#include "ptx.cuh"

// `arrivals` a phase, beside the bytes that are expected.
__device__ __forceinline__ void barrier_init(u32 barrier, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// The copy engine sees the barriers that this thread has made.
__device__ __forceinline__ void barriers_made() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// This thread's arrival, and so many bytes more before the phase is over.
__device__ __forceinline__ void barrier_expect(u32 barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// This thread's arrival; orders no more than the block's own accesses.
__device__ __forceinline__ void barrier_arrive(u32 barrier) {
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// This thread's arrival once all its copy_async's so far have landed; one of the `arrivals`.
__device__ __forceinline__ void barrier_arrive_after_copies(u32 barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(barrier) : "memory");
}

// Until the phase of this parity is over; what the copies brought is visible then.
__device__ __forceinline__ void barrier_wait(u32 barrier, u32 parity) {
  asm volatile(
      "{\n"
      ".reg .pred over;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared.b64 over, [%0], %1;\n"
      "@over bra done;\n"
      "bra again;\n"
      "done:\n"
      "}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// Whether it is over after so long at most.
__device__ __forceinline__ bool barrier_over_within(u32 barrier, u32 parity, int nanoseconds) {
  u32 over;
  asm volatile(
      "{\n"
      ".reg .pred is;\n"
      "mbarrier.try_wait.parity.shared.b64 is, [%1], %2, %3;\n"
      "selp.u32 %0, 1, 0, is;\n"
      "}"
      : "=r"(over)
      : "r"(barrier), "r"(parity), "r"(nanoseconds)
      : "memory");
  return over != 0;
}

// bytes is a multiple of 16, and both addresses are.
__device__ __forceinline__ void copy_bulk(u32 to, const void* from, int bytes, u32 barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from),
      "r"(bytes), "r"(barrier)
      : "memory");
}

// The same of what is read but once by the whole GPU: it goes first when L2 wants room, and what other kernels left there stays.
__device__ __forceinline__ void copy_once(u32 to, const void* from, int bytes, u32 barrier) {
  u64 policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(to),
      "l"(from), "r"(bytes), "r"(barrier), "l"(policy)
      : "memory");
}

// The same no further than L2, where copy_once finds it.
__device__ __forceinline__ void prefetch_once(const void* from, int bytes) {
  u64 policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  asm volatile("cp.async.bulk.prefetch.L2.global.L2::cache_hint [%0], %1, %2;" ::"l"(from), "r"(bytes), "l"(policy) : "memory");
}

// bytes as copy_bulk's, on their way to L2.
__device__ __forceinline__ void prefetch_l2(const void* from, int bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
}
