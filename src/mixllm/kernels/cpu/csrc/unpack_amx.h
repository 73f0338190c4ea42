// A slice of a block of rows as the int8 that tiles multiply: zeros and multipliers are worked into the codes once
// for all tokens, so that a product is the finished integer.
#pragma once
#include <immintrin.h>

#include "block.h"

// Four codes of each of 16 rows from 64 bytes on; a row's numbers are in the bytes of one lane.
struct RowNumbers {
    __m512i factor, offset;

    RowNumbers(const Block& b, int64_t g) {
        const auto widen = [&](const uint8_t* from) {
            const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + g * b.zero_step));
            return _mm512_cvtepu8_epi32(bytes);
        };
        const __m512i m = widen(b.factors);
        factor = _mm512_mullo_epi32(m, _mm512_set1_epi32(0x00010001));
        offset = _mm512_mullo_epi32(_mm512_mullo_epi32(m, widen(b.zeros)), _mm512_set1_epi32(0x01010101));
    }
    // m q - m z: no byte of m q, at most 16 * 15, carries into the next.
    __m512i apply(__m512i codes) const { return _mm512_sub_epi8(_mm512_mullo_epi16(codes, factor), offset); }
};

// Inputs [from, to) of 16 rows, multiples of 8, in tiles of 64 inputs: [steps][16][16 rows][4].
inline void unpack4(const Block& b, int64_t from, int64_t to, int8_t* out) {
    const __m512i mask = _mm512_set1_epi8(15);
    for (int64_t k = from; k < to;) {
        const RowNumbers row(b, k / kGroup);
        for (const int64_t end = least(k / kGroup * kGroup + kGroup, to); k < end; k += 8, out += 128) {
            const uint8_t* codes = b.codes + k * 8;
            __builtin_prefetch(codes + kAhead);
            const __m512i both = _mm512_loadu_si512(codes);
            _mm512_storeu_si512(out, row.apply(_mm512_and_si512(both, mask)));
            _mm512_storeu_si512(out + 64, row.apply(_mm512_and_si512(_mm512_srli_epi16(both, 4), mask)));
        }
    }
}

inline void unpack8(const Block& b, int64_t from, int64_t to, int8_t* out) {
    for (int64_t k = from; k < to; k += 4, out += 64) {
        const uint8_t* codes = b.codes + k * 16;
        __builtin_prefetch(codes + kAhead);
        _mm512_storeu_si512(out, _mm512_xor_si512(_mm512_loadu_si512(codes), _mm512_set1_epi8(-128)));
    }
}
