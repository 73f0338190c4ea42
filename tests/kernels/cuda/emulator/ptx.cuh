// What csrc/ptx.cuh and CUDA itself give a kernel, for a CPU: every CUDA thread is a thread here, blocks run one after
// the other (a block waits for lower-numbered ones only) or as many at one time as are a cluster, shared memory is an array
// that begins as rubbish.
#pragma once
#include <algorithm>
#include <atomic>
#include <barrier>
#include <cmath>
#include <cstring>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>
#define __device__
#define __global__
#define __forceinline__ inline
#define __shared__ static
#define __align__(n) alignas(n)
#define __launch_bounds__(...)
#define __maxnreg__(...)
#define __grid_constant__
#define __noinline__ __attribute__((noinline))

using i8 = signed char;
using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using i64 = long long;
using u64 = unsigned long long;
using std::max;
using std::min;
inline u32 min(u32 a, int b) { return std::min(a, static_cast<u32>(b)); }
inline u32 min(int a, u32 b) { return std::min(static_cast<u32>(a), b); }

constexpr u32 ONES = 0x01010101u, SIGNS = 0x80808080u;
struct alignas(16) Words4 {
  u32 x, y, z, w;
};
struct alignas(8) Words2 {
  u32 x, y;
};

struct Dim {
  int x, y;
};
inline thread_local Dim threadIdx, blockIdx;
inline Dim gridDim, blockDim;
#ifndef PEERS
#define PEERS 0
#endif
constexpr int MOST_PEERS = PEERS > 1 ? PEERS : 1;  // blocks of a cluster
inline thread_local int block_in_cluster;
inline u8 shared_memories[MOST_PEERS][1 << 18];
#define shared_memory shared_memories[block_in_cluster]

struct Warp {
  std::barrier<> barrier{32};
  u32 a[32][4], b[32][2];
};
inline std::vector<std::unique_ptr<Warp>> warps_of[MOST_PEERS];
inline Warp& own_warp() { return *warps_of[block_in_cluster][threadIdx.x / 32]; }
using OneBarrier = std::unique_ptr<std::barrier<>>;
inline OneBarrier cluster_barrier, block_barriers[MOST_PEERS], named_barriers_of[MOST_PEERS][16];
#define block_barrier block_barriers[block_in_cluster]
#define named_barriers named_barriers_of[block_in_cluster]

inline void __syncthreads() { block_barrier->arrive_and_wait(); }
inline void __syncwarp() { own_warp().barrier.arrive_and_wait(); }
template <int THREADS_THERE>
inline std::barrier<>& made_barrier(int number) {
  static std::mutex making;
  const std::lock_guard lock(making);
  if (!named_barriers[number]) named_barriers[number] = std::make_unique<std::barrier<>>(THREADS_THERE);
  return *named_barriers[number];
}
template <int THREADS_THERE>
inline void named_barrier(int number) {
  made_barrier<THREADS_THERE>(number).arrive_and_wait();
}
template <int THREADS_THERE>
inline void arrive_at_named_barrier(int number) {
  static_cast<void>(made_barrier<THREADS_THERE>(number).arrive());
}

template <typename To, typename From>
inline To bits_as(From v) {
  To to;
  std::memcpy(&to, &v, sizeof to);
  return to;
}
inline u32 shared_address(const void* pointer) { return static_cast<const u8*>(pointer) - shared_memory; }
template <typename T>
inline T from_shared(u32 address) {
  T v;
  std::memcpy(&v, shared_memory + address, sizeof v);
  return v;
}
inline Words4 load_shared(u32 address) { return from_shared<Words4>(address); }
inline u32 load_shared_u16(u32 address) { return from_shared<u16>(address); }
inline u32 load_shared_u32(u32 address) { return from_shared<u32>(address); }
inline void store_shared(u32 address, Words4 v) { std::memcpy(shared_memory + address, &v, 16); }
inline void copy_async(u32 to, const void* from) { std::memcpy(shared_memory + to, from, 16); }
inline void copy_commit() {}
template <int YOUNGER>
inline void copy_wait() {}
inline Words4 load_l2(const void* pointer) { return *static_cast<const Words4*>(pointer); }
inline Words2 load_l2_8(const void* pointer) { return *static_cast<const Words2*>(pointer); }
inline Words4 load_cached(const void* pointer) { return *static_cast<const Words4*>(pointer); }
inline void store_l2(void* pointer, Words4 v) { *static_cast<Words4*>(pointer) = v; }
inline void raise_flag(int* flag) { std::atomic_ref(*flag).store(1); }
inline int read_flag(const int* flag) { return std::atomic_ref(*const_cast<int*>(flag)).load(); }
inline void wait_for_earlier_kernels() {}
inline void let_next_kernel_start() {}

// mma.m16n8k32 by its definition: which lane holds what is in the PTX manual.
template <bool UNSIGNED_A>
inline void mma(int (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  Warp& warp = own_warp();
  const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
  std::copy(a, a + 4, warp.a[lane]);
  warp.b[lane][0] = b0, warp.b[lane][1] = b1;
  __syncwarp();
  for (int e = 0; e < 4; ++e) {
    const int row = g + e / 2 * 8, column = c * 2 + e % 2;
    for (int k = 0; k < 32; ++k) {
      const int part = k % 16 / 4, half = k / 16, shift = k % 4 * 8;
      const u8 left = warp.a[row % 8 * 4 + part][row / 8 + 2 * half] >> shift;
      const i8 right = warp.b[column * 4 + part][half] >> shift;
      d[e] += (UNSIGNED_A ? int{left} : int{static_cast<i8>(left)}) * right;
    }
  }
  __syncwarp();
}

// A warp's values, seen by all its lanes.
template <typename T>
inline std::vector<T> of_warp(T mine) {
  Warp& warp = own_warp();
  static_assert(sizeof(T) == 4);
  warp.a[threadIdx.x % 32][0] = bits_as<u32>(mine);
  __syncwarp();
  std::vector<T> all(32);
  for (int lane = 0; lane < 32; ++lane) all[lane] = bits_as<T>(warp.a[lane][0]);
  __syncwarp();
  return all;
}
template <typename T>
inline T __shfl_xor_sync(u32, T v, int other) {
  return of_warp(v)[threadIdx.x % 32 ^ other];
}
inline u32 __ballot_sync(u32, bool v) {
  u32 bits = 0;
  const auto all = of_warp<u32>(v);
  for (int lane = 0; lane < 32; ++lane) bits |= all[lane] << lane;
  return bits;
}
inline int __ffs(u32 v) { return __builtin_ffs(static_cast<int>(v)); }
inline u32 __reduce_max_sync(u32, u32 v) {
  const auto all = of_warp(v);
  return *std::max_element(all.begin(), all.end());
}
inline int __reduce_add_sync(u32, int v) {
  int sum = 0;
  for (const int lane : of_warp(v)) sum += lane;
  return sum;
}
inline int atomicAdd(int* to, int v) { return std::atomic_ref(*to).fetch_add(v); }
inline int __dp4a(int a, int b, int sum) {
  for (int shift = 0; shift < 32; shift += 8) sum += static_cast<i8>(a >> shift) * static_cast<i8>(b >> shift);
  return sum;
}
inline u32 __dp4a(u32 a, u32 b, u32 sum) {
  for (int shift = 0; shift < 32; shift += 8) sum += (a >> shift & 255) * (b >> shift & 255);
  return sum;
}
inline u32 __byte_perm(u32 a, u32 b, u32 selector) {
  const u64 both = a | static_cast<u64>(b) << 32;
  u32 v = 0;
  for (int i = 0; i < 4; ++i) v |= static_cast<u32>(both >> (selector >> 4 * i & 7) * 8 & 255) << 8 * i;
  return v;
}

enum class Type : int { f16 = 0, bf16 = 1, f32 = 2 };
inline u32 __float_as_uint(float v) { return bits_as<u32>(v); }
inline int __float_as_int(float v) { return bits_as<int>(v); }
inline float __int_as_float(int v) { return bits_as<float>(v); }
inline float __uint_as_float(u32 v) { return bits_as<float>(v); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float v) { return 1 / v; }
inline float rsqrtf(float v) { return 1 / std::sqrt(v); }
inline float max_or_nan(float a, float b) { return a != a || b != b ? NAN : std::max(a, b); }
inline u16 to_half_bits(float v) { return bits_as<u16>(static_cast<_Float16>(v)); }
inline float from_half_bits(u16 h) { return bits_as<_Float16>(h); }
inline u16 to_bfloat_bits(float v) { return (bits_as<u32>(v) + 0x7FFF + (bits_as<u32>(v) >> 16 & 1)) >> 16; }
inline float from_bfloat_bits(u16 h) { return bits_as<float>(static_cast<u32>(h) << 16); }
