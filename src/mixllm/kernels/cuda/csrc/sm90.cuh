// More of sm_90's instructions that C++ has no word for: what reaches into the shared memory of a cluster's other
// blocks, registers that warpgroups trade, and matrices turned on their way to shared memory.
#pragma once
#include "bulk.cuh"

__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
// Where only one lane of a warp waits.
__device__ __forceinline__ void lane_waits_for_cluster() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }
__device__ __forceinline__ void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}

// To the same place in block `rank`'s shared memory; the block has begun and does not end before it has seen it.
__device__ __forceinline__ void store_to_block(u32 to, u32 rank, u32 v) {
  asm volatile(
      "{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
      "st.shared::cluster.u32 [there], %2;\n}" ::"r"(to),
      "r"(rank), "r"(v)
      : "memory");
}

// copy_bulk to the same place in all blocks of a cluster, whose barriers at that place each count the bytes.
template <int PEERS_THERE>
__device__ __forceinline__ void copy_to_all(u32 to, const void* from, int bytes, u32 barrier) {
  if constexpr (PEERS_THERE == 1) {
    copy_bulk(to, from, bytes, barrier);
  } else {
    const u16 all = (1 << PEERS_THERE) - 1;
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], %4;" ::"r"(
            to),
        "l"(from), "r"(bytes), "r"(barrier), "h"(all)
        : "memory");
  }
}

__device__ __forceinline__ u32 cluster_rank() {
  u32 rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// Where dynamic shared memory begins in a block that has no other: the first KB is the system's.
constexpr u32 DYNAMIC_SHARED = 1024;
__device__ __forceinline__ void trap() { asm volatile("trap;"); }

// A copy in a register of its own, made here and nowhere earlier.
__device__ __forceinline__ u32 moved(u32 x) {
  u32 y;
  asm volatile("mov.b32 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

// A warpgroup gives registers of its threads back to the block, or takes some (a multiple of 8 each).
template <int EACH>
__device__ __forceinline__ void shrink_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(EACH));
}
template <int EACH>
__device__ __forceinline__ void grow_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(EACH));
}

// Four 8 x 8 matrices of 16 bits, transposed: lane 4 g + c has elements 2 c and 2 c + 1 of line g of each; lane 8 m + i
// says where column i of matrix m goes.
__device__ __forceinline__ void store_transposed(u32 to, const u32 (&m)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(m[0]), "r"(m[1]),
               "r"(m[2]), "r"(m[3])
               : "memory");
}

// Two halves of a word to two places in shared memory.
__device__ __forceinline__ void store_shared_halves(u32 low_to, u32 high_to, u32 x) {
  asm volatile("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %2;\nst.shared.b16 [%0], low;\nst.shared.b16 [%1], high;\n}" ::"r"(low_to),
               "r"(high_to), "r"(x)
               : "memory");
}

// One and two words to and from shared memory.
__device__ __forceinline__ void store_shared_u32(u32 to, u32 x) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(to), "r"(x) : "memory");
}
__device__ __forceinline__ void store_shared_pair(u32 to, u32 x, u32 y) {
  asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(to), "r"(x), "r"(y) : "memory");
}
__device__ __forceinline__ void load_shared_pair(u32 from, u32& x, u32& y) {
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(x), "=r"(y) : "r"(from));
}

// Both rounded to TYPE, `low` in the low half.
template <Type TYPE>
__device__ __forceinline__ u32 to_pair(float low, float high) {
  u32 packed;
  if constexpr (TYPE == Type::f16)
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  else
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
