// csrc/wgmma.cuh for a CPU: a product is done when it is asked for; each warp for its own 16 rows.
#pragma once
#include "ptx.cuh"

inline u64 swizzled_tile(u32 address) {
  if (address % 1024) std::abort();
  return address >> 4;
}
inline void wgmma_fence() {}
inline void wgmma_commit() {}
template <int YOUNGER>
inline void wgmma_wait() {}
template <typename T, int N>
inline void settle(T (&)[N]) {}

// A byte of a token's line: the swizzle is of the address, its bits 4..6 by its bits 7..9.
inline u8 line_byte(u64 b, int token, int at) {
  const u32 plain = static_cast<u32>(b << 4) + token / 8 * 1024 + token % 8 * 128 + at;
  return shared_memory[plain ^ (plain >> 7 & 7) << 4];
}

template <bool UNSIGNED_A, bool UNSIGNED_B, int N>
inline void wgmma(u32 (&d)[N / 2], const u32 (&a)[4], u64 b, u32 accumulate) {
  Warp& warp = own_warp();
  const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
  std::copy(a, a + 4, warp.a[lane]);
  __syncwarp();
  int left[2][32];
  for (int h = 0; h < 2; ++h)
    for (int k = 0; k < 32; ++k) {
      const u8 byte = warp.a[g * 4 + k % 16 / 4][h + k / 16 * 2] >> k % 4 * 8;
      left[h][k] = UNSIGNED_A ? int{byte} : int{static_cast<i8>(byte)};
    }
  for (int i = 0; i < N / 2; ++i) {
    const int token = i / 4 * 8 + c * 2 + i % 2, h = i % 4 / 2;
    u32 sum = accumulate ? d[i] : 0;
    for (int k = 0; k < 32; ++k) {
      const u8 right = line_byte(b, token, k);
      sum += left[h][k] * (UNSIGNED_B ? int{right} : int{static_cast<i8>(right)});
    }
    d[i] = sum;
  }
  __syncwarp();
}

inline void wgmma_bfloat(float (&d)[32], const u32 (&a)[4], u64 b, u32 accumulate) {
  Warp& warp = own_warp();
  const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
  std::copy(a, a + 4, warp.a[lane]);
  __syncwarp();
  for (int i = 0; i < 32; ++i) {
    const int token = i / 4 * 8 + c * 2 + i % 2, h = i % 4 / 2;
    if (!accumulate) d[i] = 0;
    for (int k = 0; k < 16; ++k) {
      const u32 both = warp.a[g * 4 + k % 8 / 2][h + k / 8 * 2];
      const float left = from_bfloat_bits(static_cast<u16>(both >> k % 2 * 16));
      const u16 right = line_byte(b, token, k * 2) | line_byte(b, token, k * 2 + 1) << 8;
      d[i] += left * from_bfloat_bits(right);
    }
  }
  __syncwarp();
}
