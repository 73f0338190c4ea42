// The warpgroup's product: D (64 rows x N tokens) += A (64 x 32 of W, from registers) B (32 x N of X, from shared memory).
//
// Each warp of the four has 16 of the rows, and its share of A and D is that of mma.m16n8k32: lane 4 g + c has rows g
// and g + 8. So what unpack.cuh makes for the one serves the other. The products run asynchronously: registers
// of A and D may not be touched between the fence before them and the wait for their group.
#pragma once
#include "ptx.cuh"

// X's tile in shared memory: lines of 128 bytes, one a token, whose 16-byte pieces are swizzled (piece ^ token % 8)
// so that eight lines lie in all banks; eight lines are 1,024 bytes, aligned to as many.
__device__ __forceinline__ u64 swizzled_tile(u32 address) {
  constexpr u64 SWIZZLE_128 = 1ull << 62, EIGHT_LINES = 1024 / 16, UNUSED = 1;
  return SWIZZLE_128 | EIGHT_LINES << 32 | UNUSED << 16 | static_cast<u64>((address & 0x3FFFF) >> 4);
}

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

template <int YOUNGER>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(YOUNGER) : "memory");
}

// Makes the compiler finish what it does with registers on this side of a fence or wait.
template <int N>
__device__ __forceinline__ void settle(u32 (&registers)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+r"(registers[i])::"memory");
}

template <int N>
__device__ __forceinline__ void settle(float (&registers)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}

// accumulate = 0 starts from zero.
template <bool UNSIGNED_A, bool UNSIGNED_B, int N>
__device__ __forceinline__ void wgmma(u32 (&d)[N / 2], const u32 (&a)[4], u64 b, u32 accumulate);

// Names of the operands, and the operands.
#define NAMES_0_3 "%0, %1, %2, %3"
#define NAMES_0_7 NAMES_0_3 ", %4, %5, %6, %7"
#define NAMES_0_15 NAMES_0_7 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define NAMES_0_31 \
  NAMES_0_15 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_0_39 NAMES_0_31 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define NAMES_0_47 NAMES_0_39 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define NAMES_0_63 \
  NAMES_0_31 ", " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, " \
  "%52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define NAMES_64_95 \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, " \
  "%84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define NAMES_96_127 \
  "%96, %97, %98, %99, %100, %101, %102, " \
  "%103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, " \
  "%119, %120, %121, %122, %123, %124, %125, %126, %127"
#define PLACES_4(KIND, i) KIND(d[i]), KIND(d[i + 1]), KIND(d[i + 2]), KIND(d[i + 3])
#define PLACES_8(KIND, i) PLACES_4(KIND, i), PLACES_4(KIND, i + 4)
#define PLACES_32(KIND, i) PLACES_8(KIND, i), PLACES_8(KIND, i + 8), PLACES_8(KIND, i + 16), PLACES_8(KIND, i + 24)
#define PLACES_64(KIND, i) PLACES_32(KIND, i), PLACES_32(KIND, i + 32)

#define WGMMA(UNSIGNED_A, UNSIGNED_B, TYPES, N, NAMES, A0, A1, A2, A3, B, P, ...)                                        \
  template <>                                                                                                          \
  __device__ __forceinline__ void wgmma<UNSIGNED_A, UNSIGNED_B, N>(u32(&d)[N / 2], const u32(&a)[4], u64 b,             \
                                                                   u32 accumulate) {                                   \
    asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %" P ", 0;\n"                                                       \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k32.s32." TYPES " {" NAMES "}, {%" A0 ", %" A1 ", %" A2         \
                 ", %" A3 "}, %" B ", p;\n}"                                                                           \
                 : __VA_ARGS__                                                                                         \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));                               \
  }

WGMMA(true, false, "u8.s8", 8, NAMES_0_3, "4", "5", "6", "7", "8", "9", PLACES_4("+r", 0))
WGMMA(false, false, "s8.s8", 8, NAMES_0_3, "4", "5", "6", "7", "8", "9", PLACES_4("+r", 0))
WGMMA(true, false, "u8.s8", 16, NAMES_0_7, "8", "9", "10", "11", "12", "13", PLACES_8("+r", 0))
WGMMA(false, false, "s8.s8", 16, NAMES_0_7, "8", "9", "10", "11", "12", "13", PLACES_8("+r", 0))
WGMMA(true, false, "u8.s8", 32, NAMES_0_15, "16", "17", "18", "19", "20", "21", PLACES_8("+r", 0), PLACES_8("+r", 8))
WGMMA(false, false, "s8.s8", 32, NAMES_0_15, "16", "17", "18", "19", "20", "21", PLACES_8("+r", 0), PLACES_8("+r", 8))
WGMMA(true, false, "u8.s8", 64, NAMES_0_31, "32", "33", "34", "35", "36", "37", PLACES_32("+r", 0))
WGMMA(false, false, "s8.s8", 64, NAMES_0_31, "32", "33", "34", "35", "36", "37", PLACES_32("+r", 0))
WGMMA(true, false, "u8.s8", 128, NAMES_0_63, "64", "65", "66", "67", "68", "69", PLACES_64("+r", 0))
WGMMA(false, false, "s8.s8", 128, NAMES_0_63, "64", "65", "66", "67", "68", "69", PLACES_64("+r", 0))
WGMMA(true, false, "u8.s8", 192, NAMES_0_63 ", " NAMES_64_95, "96", "97", "98", "99", "100", "101", PLACES_64("+r", 0), PLACES_32("+r", 64))
WGMMA(true, false, "u8.s8", 256, NAMES_0_63 ", " NAMES_64_95 ", " NAMES_96_127, "128", "129", "130", "131", "132", "133", PLACES_64("+r", 0), PLACES_64("+r", 64))
WGMMA(true, true, "u8.u8", 64, NAMES_0_31, "32", "33", "34", "35", "36", "37", PLACES_32("+r", 0))
WGMMA(true, true, "u8.u8", 80, NAMES_0_39, "40", "41", "42", "43", "44", "45", PLACES_32("+r", 0), PLACES_8("+r", 32))
WGMMA(true, true, "u8.u8", 96, NAMES_0_47, "48", "49", "50", "51", "52", "53", PLACES_32("+r", 0), PLACES_8("+r", 32), PLACES_8("+r", 40))

// The same of bfloat16s and 64 tokens, 16 inputs in as many bytes as 32 of the others.
__device__ __forceinline__ void wgmma_bfloat(float (&d)[32], const u32 (&a)[4], u64 b, u32 accumulate) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %37, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" NAMES_0_31 "}, {%32, %33, %34, %35}, %36, p, 1, 1, 0;\n}"
               : PLACES_32("+f", 0)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
}

#undef WGMMA
#undef PLACES_64
#undef PLACES_32
#undef PLACES_8
#undef PLACES_4
#undef NAMES_96_127
#undef NAMES_64_95
#undef NAMES_0_63
#undef NAMES_0_47
#undef NAMES_0_39
#undef NAMES_0_31
#undef NAMES_0_15
#undef NAMES_0_7
#undef NAMES_0_3
