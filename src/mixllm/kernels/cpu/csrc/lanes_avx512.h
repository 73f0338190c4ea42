// Sixteen rows in one 512-bit register; vpdpbusd multiplies four unsigned weights by four signed activations.
#pragma once
#include <immintrin.h>

#include "element.h"

struct Avx512 {
    static constexpr int kMostTokens = 24;
    typedef __m512i V;
    typedef __m512i Bytes;
    typedef __m512 F;

    static V zero() { return _mm512_setzero_si512(); }
    static V load(const int32_t* from) { return _mm512_loadu_si512(from); }
    static void store(int32_t* to, V v) { _mm512_storeu_si512(to, v); }
    static Bytes bytes(const uint8_t* from) { return _mm512_loadu_si512(from); }
    static Bytes low(Bytes v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
    static Bytes high(Bytes v) { return low(_mm512_srli_epi16(v, 4)); }
    static V dot8(V sum, Bytes w, const int8_t* a) {
        int32_t four;
        std::memcpy(&four, a, 4);
        return _mm512_dpbusd_epi32(sum, w, _mm512_set1_epi32(four));
    }
    static V dot4(V sum, Bytes low, Bytes high, const int8_t* a, const int8_t* b) {
        return dot8(dot8(sum, low, a), high, b);
    }
    // Two signed 16-bit numbers of each of 16 rows times two of one token.
    static Bytes pairs(const int16_t* from) { return _mm512_loadu_si512(from); }
    static V two(const int16_t* from) {
        int32_t both;
        std::memcpy(&both, from, 4);
        return _mm512_set1_epi32(both);
    }
    static V dot2(V sum, Bytes w, V two) { return _mm512_dpwssd_epi32(sum, w, two); }
    static V widen(const uint8_t* from) {
        return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    }
    static V set(int32_t value) { return _mm512_set1_epi32(value); }
    static V add(V a, V b) { return _mm512_add_epi32(a, b); }
    static V subtract(V a, V b) { return _mm512_sub_epi32(a, b); }
    static V multiply(V a, V b) { return _mm512_mullo_epi32(a, b); }
    static F to_float(V v) { return _mm512_cvtepi32_ps(v); }
    static F load_float(const float* from) { return _mm512_loadu_ps(from); }
    static F load_half(const uint16_t* from) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    }
    static void store_float(float* to, F v) { _mm512_storeu_ps(to, v); }
    static F set_float(float value) { return _mm512_set1_ps(value); }
    static F add_float(F a, F b) { return _mm512_add_ps(a, b); }
    static F multiply_float(F a, F b) { return _mm512_mul_ps(a, b); }
};
