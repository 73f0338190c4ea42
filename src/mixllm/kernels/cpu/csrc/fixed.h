// float32 vectors as 16-bit integers of one scale, and their products: two inputs side by side, summed in 32 bits.
#pragma once
#include <cmath>

#include "fixed_call.h"
#include "vectors.h"

typedef int16_t Signed __attribute__((vector_size(32)));

// What the lengths of two vectors of integers may be, so that their product fits 32 bits whatever they are: their
// product by Cauchy's inequality, less what rounding adds to each and the float32 sum's own error.
inline float longest(int64_t inputs) { return 46290.0f - 0.5f * std::sqrt(float(inputs)); }

// Writes x [inputs] to to[ceil(inputs / 2)][Width][2] and returns the scale of these integers: NaN, of zeros, where a
// number is not finite.
template <int Width>
inline float to_fixed(const float* x, int64_t inputs, int16_t* to) {
    constexpr float magic = 12582912.0f; // 1.5 * 2^23: adding it rounds half to even, and leaves the code in the last bits
    const int32_t bits_of_zero = int32_t(to_bits(magic));
    auto each = [&](auto f) {
        int64_t k = 0;
        for (; k + 16 <= inputs; k += 16) f(k, load16(x + k));
        if (k < inputs) f(k, load_some<Float32>(x + k, inputs - k));
    };
    Ints peaks = {};
    each([&](int64_t, Floats v) {
        const Ints bits = Ints(v) & 0x7FFFFFFF;
        peaks = bits > peaks ? bits : peaks;
    });
    int32_t peak = 0;
    for (int i = 0; i < 16; i++) peak = peaks[i] > peak ? peaks[i] : peak;
    const bool finite = peak < 0x7F800000, some = finite && from_bits(uint32_t(peak)) >= 0x1p-100f;
    const float most = from_bits(uint32_t(peak)), inverse = some ? 1.0f / most : 0.0f;
    Floats squares = {};
    if (some)
        each([&](int64_t, Floats v) {
            const Floats part = v * inverse;
            squares += part * part;
        });
    const float length = std::sqrt(sum(squares)) / longest(inputs), step = length > 1 / 32767.0f ? length : 1 / 32767.0f;
    const float factor = some ? inverse / step : 0.0f;
    each([&](int64_t k, Floats v) {
        const Ints codes = some ? Ints(v * factor + magic) - bits_of_zero : Ints{};
        const Signed narrow = __builtin_convertvector(codes, Signed);
        const char* from = reinterpret_cast<const char*>(&narrow);
        if (k + 16 <= inputs)
            for (int i = 0; i < 16; i += 2) std::memcpy(to + (k + i) * Width, from + 2 * i, 4);
        else
            for (int i = 0; k + i < inputs; i += 2) std::memcpy(to + (k + i) * Width, from + 2 * i, 4);
    });
    return some ? most * step : finite ? 0.0f : __builtin_nanf("");
}

inline void fixed_rows(const MixllmFixedRows& f, int64_t block) {
    const int64_t pairs = ceil_div(f.inputs, 2);
    int16_t* codes = f.codes + block * pairs * 2 * kRows;
    for (int r = 0; r < kRows; r++) {
        const int64_t row = block * kRows + r;
        if (row < f.rows)
            f.scales[row] = to_fixed<kRows>(f.x + row * f.pitch, f.inputs, codes + 2 * r);
        else
            for (int64_t k = 0; k < pairs; k++) std::memset(codes + 2 * (k * kRows + r), 0, 4);
    }
}

inline void fixed_tokens(const MixllmFixed& f, const FixedTile& tile) {
    for (int t = 0; t < kFixedTokens; t++) {
        // Tokens that are not there are some other's.
        const float* x = f.x + (tile.first + least(t, tile.tokens - 1)) * f.pitch;
        tile.scales[t] = to_fixed<kFixedTokens>(x, f.inputs, tile.codes + 2 * t);
    }
}

// Two blocks of rows, whose codes lie `next` apart, times a tile, x: the sums, out [2][12][16].
template <class L>
__attribute__((noinline)) void fixed_sums(const int16_t* codes, int64_t next, const int16_t* x, int64_t pairs, int32_t* out) {
    typename L::V sums[kFixedBlocks][kFixedTokens];
    for (int b = 0; b < kFixedBlocks; b++)
        for (int t = 0; t < kFixedTokens; t++) sums[b][t] = L::zero();
    for (int64_t k = 0; k < pairs; k++, codes += 2 * kRows, x += 2 * kFixedTokens) {
        typename L::Bytes w[kFixedBlocks];
        for (int b = 0; b < kFixedBlocks; b++) w[b] = L::pairs(codes + b * next);
        for (int t = 0; t < kFixedTokens; t++) {
            const typename L::V two = L::two(x + 2 * t);
            for (int b = 0; b < kFixedBlocks; b++) sums[b][t] = L::dot2(sums[b][t], w[b], two);
        }
    }
    for (int b = 0; b < kFixedBlocks; b++)
        for (int t = 0; t < kFixedTokens; t++) L::store(out + (b * kFixedTokens + t) * kRows, sums[b][t]);
}

// Outputs [first, first + rows) of a tile, to their place.
inline void fixed_store(const MixllmFixed& f, const FixedTile& tile, const int32_t (&sums)[kFixedTokens][kRows], int64_t first, int64_t rows) {
    for (int t = 0; t < tile.tokens; t++) {
        float y[kRows], *to = f.y + (tile.first + t) * f.outputs + first;
        for (int r = 0; r < kRows; r++) y[r] = float(sums[t][r]) * tile.scales[t] * f.scales[first + r];
        if (rows == kRows)
            std::memcpy(to, y, sizeof y);
        else
            std::memcpy(to, y, size_t(rows) * 4);
    }
}

// The same outputs times delta, added up.
inline void fixed_add(const MixllmFixed& f, const FixedTile& tile, const int32_t (&sums)[kFixedTokens][kRows], int64_t first, int64_t rows) {
    const int64_t place = first % f.period;
    for (int t = 0; t < tile.tokens;) {
        const int64_t window = (tile.first + t) / f.length;
        float one[kRows] = {}, two[kRows] = {};
        for (; t < tile.tokens && (tile.first + t) / f.length == window; t++) {
            const float* from = f.delta + (tile.first + t) * f.period;
            float delta[kRows] = {};
            if (rows == kRows && place + kRows <= f.period)
                std::memcpy(delta, from + place, sizeof delta);
            else
                for (int64_t r = 0; r < rows; r++) delta[r] = from[(place + r) % f.period];
            for (int r = 0; r < kRows; r++) {
                const float product = float(sums[t][r]) * tile.scales[t] * f.scales[first + r] * delta[r];
                one[r] += product;
                two[r] += product * product;
            }
        }
        const int64_t to = window * f.outputs + first;
        for (int64_t r = 0; r < rows; r++) f.sums[to + r] += one[r], f.squares[to + r] += two[r];
    }
}

// Two blocks of rows, from `block` on, times some tiles.
template <class L>
void fixed_product(const MixllmFixed& f, int64_t block, const FixedTile* tiles, int64_t count) {
    const int64_t pairs = ceil_div(f.inputs, 2), next = pairs * 2 * kRows;
    for (const FixedTile* tile = tiles; tile < tiles + count; tile++) {
        alignas(64) int32_t sums[kFixedBlocks][kFixedTokens][kRows];
        fixed_sums<L>(f.codes + block * next, next, tile->codes, pairs, sums[0][0]);
        for (int b = 0; b < kFixedBlocks; b++) {
            const int64_t first = (block + b) * kRows, rows = least(kRows, f.outputs - first);
            if (rows > 0) (f.delta ? fixed_add : fixed_store)(f, *tile, sums[b], first, rows);
        }
    }
}
