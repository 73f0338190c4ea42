// Sixteen rows in two 256-bit registers, without VNNI: vpmaddubsw makes int16 sums of two products, which 4-bit
// codes never overflow; 8-bit codes are multiplied as two nibbles for the same reason.
#pragma once
#include <immintrin.h>

#include "element.h"

struct Avx2 {
    static constexpr int kMostTokens = 4;
    struct V {
        __m256i lane[2];
    };
    struct F {
        __m256 lane[2];
    };
    typedef V Bytes;

    static __m256i at(const void* from, int i) {
        return _mm256_loadu_si256(static_cast<const __m256i*>(from) + i);
    }
    template <class Function>
    static V each(Function f) {
        return V{{f(0), f(1)}};
    }
    template <class Function>
    static F each_float(Function f) {
        return F{{f(0), f(1)}};
    }
    static __m256i four(const int8_t* a) {
        int32_t word;
        std::memcpy(&word, a, 4);
        return _mm256_set1_epi32(word);
    }

    static V zero() { return set(0); }
    static V load(const int32_t* from) {
        return each([=](int i) { return at(from, i); });
    }
    static void store(int32_t* to, V v) {
        for (int i = 0; i < 2; i++) _mm256_storeu_si256(reinterpret_cast<__m256i*>(to) + i, v.lane[i]);
    }
    static Bytes bytes(const uint8_t* from) {
        return each([=](int i) { return at(from, i); });
    }
    static Bytes low(Bytes v) {
        return each([&](int i) { return _mm256_and_si256(v.lane[i], _mm256_set1_epi8(15)); });
    }
    static Bytes high(Bytes v) {
        return low(each([&](int i) { return _mm256_srli_epi16(v.lane[i], 4); }));
    }
    static V dot4(V sum, Bytes low, Bytes high, const int8_t* a, const int8_t* b) {
        __m256i x = four(a), y = four(b), one = _mm256_set1_epi16(1);
        return each([&](int i) {
            __m256i pairs = _mm256_add_epi16(
                _mm256_maddubs_epi16(low.lane[i], x), _mm256_maddubs_epi16(high.lane[i], y));
            return _mm256_add_epi32(sum.lane[i], _mm256_madd_epi16(pairs, one));
        });
    }
    static V dot8(V sum, Bytes w, const int8_t* a) {
        __m256i x = four(a), one = _mm256_set1_epi16(1), sixteen = _mm256_set1_epi16(16);
        Bytes l = low(w), h = high(w);
        return each([&](int i) {
            __m256i small = _mm256_madd_epi16(_mm256_maddubs_epi16(l.lane[i], x), one);
            __m256i large = _mm256_madd_epi16(_mm256_maddubs_epi16(h.lane[i], x), sixteen);
            return _mm256_add_epi32(sum.lane[i], _mm256_add_epi32(small, large));
        });
    }
    static V widen(const uint8_t* from) {
        return each([=](int i) {
            return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from + 8 * i)));
        });
    }
    static V set(int32_t value) {
        return each([=](int) { return _mm256_set1_epi32(value); });
    }
    static V add(V a, V b) {
        return each([&](int i) { return _mm256_add_epi32(a.lane[i], b.lane[i]); });
    }
    static V subtract(V a, V b) {
        return each([&](int i) { return _mm256_sub_epi32(a.lane[i], b.lane[i]); });
    }
    static V multiply(V a, V b) {
        return each([&](int i) { return _mm256_mullo_epi32(a.lane[i], b.lane[i]); });
    }
    static F to_float(V v) {
        return each_float([&](int i) { return _mm256_cvtepi32_ps(v.lane[i]); });
    }
    static F load_float(const float* from) {
        return each_float([=](int i) { return _mm256_loadu_ps(from + 8 * i); });
    }
    static F load_half(const uint16_t* from) {
        return each_float([=](int i) {
            return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 8 * i)));
        });
    }
    static void store_float(float* to, F v) {
        for (int i = 0; i < 2; i++) _mm256_storeu_ps(to + 8 * i, v.lane[i]);
    }
    static F set_float(float value) {
        return each_float([=](int) { return _mm256_set1_ps(value); });
    }
    static F add_float(F a, F b) {
        return each_float([&](int i) { return _mm256_add_ps(a.lane[i], b.lane[i]); });
    }
    static F multiply_float(F a, F b) {
        return each_float([&](int i) { return _mm256_mul_ps(a.lane[i], b.lane[i]); });
    }
};
