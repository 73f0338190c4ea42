// Activations to int8, bit for bit as docs/format.md, "Activations", written into a tile.
#pragma once
#include "element.h"
#include "hadamard.h"
#include "tile.h"

// max |x| as bits: in this order infinities come after every number and NaNs after them.
inline int32_t peak_bits(const float* x, int64_t count) {
    int32_t peak = 0;
    for (int64_t k = 0; k < count; k++) {
        int32_t bits = int32_t(to_bits(x[k]) & 0x7FFFFFFF);
        peak = bits > peak ? bits : peak;
    }
    return peak;
}

// Where a tile has the codes of token t from input k on, a multiple of 4.
template <int Run>
inline int8_t* codes_at(const Tile& tile, int t, int64_t k) {
    return tile.codes + (k / Run * tile.width + t) * Run + k % Run;
}

typedef int8_t Codes __attribute__((vector_size(16)));

// Inputs [from, to) of one token, multiples of 8; returns the sum of their codes. |x / scale| is at most
// 127 (1 + 2^-23), which rounds to 127, so nothing has to be clamped.
template <int Run>
inline int32_t quantize_inputs(const float* x, int64_t from, int64_t to, float scale, const Tile& tile, int t) {
    constexpr float magic = 12582912.0f; // 1.5 * 2^23: adding it rounds half to even, and leaves the code in the last bits
    const int32_t bits_of_zero = int32_t(to_bits(magic));
    Ints sums = {};
    int64_t k = from;
    for (; k + 16 <= to; k += 16) {
        const Ints code = Ints(load16(x + k) / scale + magic) - bits_of_zero;
        const Codes codes = __builtin_convertvector(code, Codes);
        sums += code;
        for (int i = 0; i < 16; i += least(Run, 16))
            std::memcpy(codes_at<Run>(tile, t, k + i), reinterpret_cast<const char*>(&codes) + i, least(Run, 16));
    }
    int32_t sum = 0;
    for (int i = 0; i < 16; i++) sum += sums[i];
    for (; k < to; k++) {
        const int32_t code = int32_t(to_bits(x[k] / scale + magic)) - bits_of_zero;
        codes_at<Run>(tile, t, k - k % 4)[k % 4] = int8_t(code);
        sum += code;
    }
    return sum;
}

// `room` holds padded_inputs(inputs) floats.
template <int Run>
inline void quantize_token(const MixllmWeight& w, const MixllmCall& call, const Tile& tile, int t, float* room) {
    const int64_t inputs = w.inputs, padded = padded_inputs(inputs);
    const int64_t start = (tile.first + t) * call.pitch;
    with_type(call.type, [&](auto element) {
        typedef decltype(element) E;
        const auto* x = static_cast<const typename E::Stored*>(call.x) + start;
        for (int64_t k = 0; k < inputs; k++) room[k] = E::get(x[k]);
    });
    for (int64_t k = inputs; k < padded; k++) room[k] = 0;
    if (w.rotate) rotate(room, inputs);
    int64_t group = 0;
    for (int64_t k = 0; k < inputs; k += w.activation_width, group++) {
        // The last group takes the padding too, whose codes come out as 0.
        int64_t end = k + w.activation_width < inputs ? k + w.activation_width : padded;
        int32_t peak = peak_bits(room + k, end - k);
        float ratio = from_bits(uint32_t(peak)) / 127.0f, scale = ratio;
        bool finite = peak < 0x7F800000;
        if (!finite || ratio < 0x1p-126f) {
            for (int64_t i = k; i < end; i++) room[i] = 0;
            scale = 1;
        }
        for (int64_t from = k; from < end; from += kGroup)
            tile.sums[from / kGroup * tile.width + t] =
                quantize_inputs<Run>(room, from, least(from + kGroup, end), scale, tile, t);
        tile.scales[group * tile.width + t] = finite ? scale : __builtin_nanf("");
    }
    for (int64_t k = padded; k % Run; k += 4) std::memset(codes_at<Run>(tile, t, k), 0, 4);
}

// Room that the tile has beyond its tokens: zeros, so that the product needs no other path.
template <int Run>
inline void clear_token(const MixllmWeight& w, const Tile& tile, int t) {
    for (int64_t k = 0; k < padded_inputs(w.inputs); k += Run) std::memset(codes_at<Run>(tile, t, k), 0, Run);
    for (int64_t g = 0; g < ceil_div(w.inputs, kGroup); g++) tile.sums[g * tile.width + t] = 0;
    for (int64_t a = 0; a * w.activation_width < w.inputs; a++) tile.scales[a * tile.width + t] = 0;
}
