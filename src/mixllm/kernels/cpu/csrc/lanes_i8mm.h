// NEON's sixteen rows with the products of arm64's i8mm: unsigned by signed bytes, so 8-bit codes are used as they
// are, and for two tokens at once two rows by two tokens of eight inputs in one instruction.
#pragma once
#include "lanes_neon.h"

struct UnsignedDot : Neon {
    static V dot8(V sum, Bytes w, const int8_t* a) {
        const int8x16_t x = four(a);
        return each([&](int i) { return vusdotq_s32(sum.lane[i], w.lane[i], x); });
    }
    static V dot4(V sum, Bytes low, Bytes high, const int8_t* a, const int8_t* b) {
        return dot8(dot8(sum, low, a), high, b);
    }
};

struct I8mm : UnsignedDot {
    // Sums of two tokens: lanes are (row, token), (row, next token), (next row, token), (next row, next token).
    struct Pair {
        int32x4_t lane[8];
    };
    static Pair pair(V one, V other) {
        Pair sums;
        for (int i = 0; i < 4; i++) {
            sums.lane[2 * i] = vzip1q_s32(one.lane[i], other.lane[i]);
            sums.lane[2 * i + 1] = vzip2q_s32(one.lane[i], other.lane[i]);
        }
        return sums;
    }
    static void apart(const Pair& sums, V& one, V& other) {
        for (int i = 0; i < 4; i++) {
            one.lane[i] = vuzp1q_s32(sums.lane[2 * i], sums.lane[2 * i + 1]);
            other.lane[i] = vuzp2q_s32(sums.lane[2 * i], sums.lane[2 * i + 1]);
        }
    }
    // Eight inputs: the first four are in `first`, whose activations are at a, the others in `second` and at b.
    static Pair dot_pair(Pair sums, Bytes first, Bytes second, const int8_t* a, const int8_t* b) {
        const int32x2_t x = vreinterpret_s32_s8(vld1_s8(a)), y = vreinterpret_s32_s8(vld1_s8(b));
        const int8x16_t tokens = vreinterpretq_s8_s32(vcombine_s32(vzip1_s32(x, y), vzip2_s32(x, y)));
        for (int i = 0; i < 4; i++) {
            const uint32x4_t f = vreinterpretq_u32_u8(first.lane[i]), s = vreinterpretq_u32_u8(second.lane[i]);
            sums.lane[2 * i] = vusmmlaq_s32(sums.lane[2 * i], vreinterpretq_u8_u32(vzip1q_u32(f, s)), tokens);
            sums.lane[2 * i + 1] = vusmmlaq_s32(sums.lane[2 * i + 1], vreinterpretq_u8_u32(vzip2q_u32(f, s)), tokens);
        }
        return sums;
    }
};
