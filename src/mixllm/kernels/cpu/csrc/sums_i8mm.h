// The sums of product.h for i8mm: tokens two by two.
#pragma once
#include "lanes_i8mm.h"
#include "product.h"

template <int Bits>
struct Sums<I8mm, Bits> {
    template <int T>
    __attribute__((always_inline)) static inline void add(I8mm::V (&sum)[T], const uint8_t* codes, const int8_t* a, int64_t from, int64_t to) {
        if constexpr (T == 1) {
            Sums<UnsignedDot, Bits>::template add<T>(sum, codes, a, from, to);
        } else {
            constexpr int64_t bytes = Bits == 4 ? 64 : 128; // of eight inputs
            I8mm::Pair pairs[T / 2];
            repeat<T / 2>(MIXLLM_EACH(p) { pairs[p] = I8mm::pair(sum[2 * p], sum[2 * p + 1]); });
            codes += from / 8 * bytes;
            for (a += from * T; from < to; from += 8, codes += bytes, a += 8 * T) {
                __builtin_prefetch(codes + kAhead);
                const I8mm::Bytes w = I8mm::bytes(codes);
                const I8mm::Bytes first = Bits == 4 ? I8mm::low(w) : w;
                const I8mm::Bytes second = Bits == 4 ? I8mm::high(w) : I8mm::bytes(codes + 64);
                repeat<T / 2>(MIXLLM_EACH(p) {
                    pairs[p] = I8mm::dot_pair(pairs[p], first, second, a + 8 * p, a + 4 * T + 8 * p);
                });
            }
            repeat<T / 2>(MIXLLM_EACH(p) { I8mm::apart(pairs[p], sum[2 * p], sum[2 * p + 1]); });
        }
    }
};
