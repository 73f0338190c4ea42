// The eight tile registers of AMX, each of 16 rows of 64 bytes. Instructions are written out because compilers'
// intrinsics take no template argument for a register and don't say that a load reads memory.
#pragma once
#include <cstdint>

struct AmxTiles {
    // Registers are the thread's own only until other code configures them.
    static void begin() {
        struct alignas(64) {
            uint8_t palette = 1, start_row = 0, reserved[14] = {};
            uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
        } config;
        asm volatile("ldtilecfg %0" ::"m"(config));
    }
    static void end() { asm volatile("tilerelease" ::: "memory"); }

    template <int Tile>
    static void zero() {
        asm volatile("tilezero %%tmm%c0" ::"i"(Tile));
    }
    template <int Tile>
    static void load(const void* from) {
        asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(Tile), "r"(from), "r"(int64_t(64)) : "memory");
    }
    template <int Tile>
    static void store(void* to) {
        asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(Tile), "r"(to), "r"(int64_t(64)) : "memory");
    }
    // Sum[m][n] += A[m][4 k + j] * B[k][4 n + j], signed bytes.
    template <int Sum, int A, int B>
    static void multiply() {
        asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sum), "i"(A), "i"(B));
    }
};
