// AMX's tile registers in plain C++, for machines and sanitizers that can't see what the real ones do.
#pragma once
#include <cstdint>
#include <cstring>

struct EmulatedTiles {
    union Register {
        int8_t bytes[16][64];
        int32_t words[16][16];
    };
    static Register& at(int tile) {
        static thread_local Register registers[8];
        return registers[tile];
    }
    static void begin() { std::memset(&at(0), 0, 8 * sizeof(Register)); }
    static void end() { std::memset(&at(0), 0x55, 8 * sizeof(Register)); } // what is kept beyond is wrong

    template <int Tile>
    static void zero() {
        std::memset(&at(Tile), 0, sizeof(Register));
    }
    template <int Tile>
    static void load(const void* from) {
        std::memcpy(&at(Tile), from, sizeof(Register));
    }
    template <int Tile>
    static void store(void* to) {
        std::memcpy(to, &at(Tile), sizeof(Register));
    }
    template <int Sum, int A, int B>
    static void multiply() {
        for (int m = 0; m < 16; m++)
            for (int k = 0; k < 16; k++)
                for (int n = 0; n < 16; n++)
                    for (int j = 0; j < 4; j++)
                        at(Sum).words[m][n] += at(A).bytes[m][4 * k + j] * at(B).bytes[k][4 * n + j];
    }
};
