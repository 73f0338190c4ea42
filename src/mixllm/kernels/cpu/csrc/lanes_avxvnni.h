// AVX2's sixteen rows, with the dot product of AVX-VNNI: processors for laptops have it without AVX-512.
#pragma once
#include "lanes_avx2.h"

struct AvxVnni : Avx2 {
    static V dot8(V sum, Bytes w, const int8_t* a) {
        const __m256i x = four(a);
        return each([&](int i) { return _mm256_dpbusd_avx_epi32(sum.lane[i], w.lane[i], x); });
    }
    static V dot4(V sum, Bytes low, Bytes high, const int8_t* a, const int8_t* b) {
        return dot8(dot8(sum, low, a), high, b);
    }
};
