// The instructions that C++ has no word for, each with the reason it is used.
// No CUDA header is included anywhere, so NVRTC needs nothing but this directory.
#pragma once

using i8 = signed char;
using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using i64 = long long;
using u64 = unsigned long long;

constexpr u32 ONES = 0x01010101u, SIGNS = 0x80808080u;  // the same byte four times over

struct alignas(16) Words4 {
  u32 x, y, z, w;
};
struct alignas(8) Words2 {
  u32 x, y;
};

// A generic pointer's offset in shared memory: cp.async and the volatile loads below want 32 bits.
__device__ __forceinline__ u32 shared_address(const void* pointer) {
  return static_cast<u32>(__cvta_generic_to_shared(pointer));
}

// Sixteen bytes from global to shared memory past the registers and past L1 (.cg): tiles are read once by
// an SM, and the copy runs while the warp computes.
__device__ __forceinline__ void copy_async(u32 to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

// Closes a group of copies; groups finish in order, so a stage is awaited by counting younger groups.
__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int YOUNGER>
__device__ __forceinline__ void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(YOUNGER) : "memory");
}

__device__ __forceinline__ Words4 load_shared(u32 address) {
  Words4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(address));
  return v;
}

__device__ __forceinline__ u32 load_shared_u16(u32 address) {
  u16 v;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(address));
  return v;
}

__device__ __forceinline__ u32 load_shared_u32(u32 address) {
  u32 v;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(address));
  return v;
}

__device__ __forceinline__ void store_shared(u32 address, Words4 v) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}

// A barrier for some of a block's warps: those that name the same number.
template <int THREADS_THERE>
__device__ __forceinline__ void named_barrier(int number) {
  asm volatile("bar.sync %0, %1;" ::"r"(number), "n"(THREADS_THERE) : "memory");
}

// The same where only the launch says how many they are.
__device__ __forceinline__ void named_barrier(int number, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

// The same for those that need not wait.
template <int THREADS_THERE>
__device__ __forceinline__ void arrive_at_named_barrier(int number) {
  asm volatile("bar.arrive %0, %1;" ::"r"(number), "n"(THREADS_THERE) : "memory");
}

// Activations that an earlier kernel of the stream wrote: .cg reads L2, where they are sure to be.
__device__ __forceinline__ Words4 load_l2(const void* pointer) {
  Words4 v;
  asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(pointer)
               : "memory");
  return v;
}

__device__ __forceinline__ Words2 load_l2_8(const void* pointer) {
  Words2 v;
  asm volatile("ld.global.cg.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(pointer) : "memory");
  return v;
}

// The same where several warps of an SM read them in turn: L1 may serve all but the first.
__device__ __forceinline__ Words4 load_cached(const void* pointer) {
  Words4 v;
  asm volatile("ld.global.ca.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(pointer));
  return v;
}

__device__ __forceinline__ void store_l2(void* pointer, Words4 v) {
  asm volatile("st.global.cg.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(pointer), "r"(v.x), "r"(v.y), "r"(v.z),
               "r"(v.w)
               : "memory");
}

// A flag that says "my partial sums are written": release / acquire at GPU scope orders them.
__device__ __forceinline__ void raise_flag(int* flag) {
  asm volatile("st.global.release.gpu.s32 [%0], 1;" ::"l"(flag) : "memory");
}

__device__ __forceinline__ int read_flag(const int* flag) {
  int v;
  asm volatile("ld.global.acquire.gpu.s32 %0, [%1];" : "=r"(v) : "l"(flag) : "memory");
  return v;
}

// Programmatic dependent launch (sm_90): wait until the kernels before this one have finished and their
// writes are visible. Everything that this kernel did not need them for may run before.
__device__ __forceinline__ void wait_for_earlier_kernels() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// ... and let the next kernel's blocks start where there is room, so that its weights are on their way.
__device__ __forceinline__ void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// D += A B with A 16 x 32 of W (unsigned or signed bytes), B 32 x 8 of X (signed bytes), exact int32.
template <bool UNSIGNED_A>
__device__ __forceinline__ void mma(int (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  if constexpr (UNSIGNED_A) {
    asm(
        "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// The larger, and NaN if either is.
__device__ __forceinline__ float max_or_nan(float a, float b) {
  float v;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(v) : "f"(a), "f"(b));
  return v;
}

// Float <-> 16-bit types, spelt in PTX so that no header is needed.
enum class Type : int { f16 = 0, bf16 = 1, f32 = 2 };

__device__ __forceinline__ u16 to_half_bits(float v) {
  u16 h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(v));
  return h;
}

__device__ __forceinline__ u16 to_bfloat_bits(float v) {
  u16 h;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(v));
  return h;
}

__device__ __forceinline__ float from_half_bits(u16 h) {
  float v;
  asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(h));
  return v;
}

__device__ __forceinline__ float from_bfloat_bits(u16 h) { return __uint_as_float(static_cast<u32>(h) << 16); }
