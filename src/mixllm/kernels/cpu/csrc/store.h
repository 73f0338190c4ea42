// A product's outputs to their channels, in the type of the call.
#pragma once
#include "element.h"
#include "tile.h"

// y [tile.width][16] + bias [16] -> `out`, [tokens, outputs]; only the first `rows` of a block are there.
template <class Out, class Convert>
inline void scatter(
    const MixllmWeight& w, const int32_t* channels, int rows, const Tile& tile, const float* y, const float* bias,
    void* out, const Convert& convert) {
    Out* to = static_cast<Out*>(out) + tile.first * w.outputs;
    for (int t = 0; t < tile.tokens; t++, y += kRows, to += w.outputs) {
        Out row[kRows];
        for (int i = 0; i < kRows; i++) row[i] = convert(y[i] + bias[i]);
        if (rows == kRows)
            for (int i = 0; i < kRows; i++) to[channels[i]] = row[i];
        else
            for (int i = 0; i < rows; i++) to[channels[i]] = row[i];
    }
}

// y [tile.width][16], without bias.
inline void store(const MixllmWeight& w, const MixllmCall& call, int64_t block, const Tile& tile, const float* y) {
    const int32_t* channels = w.channels + block * kRows;
    float bias[kRows]; // -0 adds to nothing, not even to a zero's sign
    int rows = 0;
    for (; rows < kRows && channels[rows] >= 0; rows++) bias[rows] = call.bias ? call.bias[channels[rows]] : -0.0f;
    for (int i = rows; i < kRows; i++) bias[i] = 0;
    if (call.type == kFloat32)
        scatter<float>(w, channels, rows, tile, y, bias, call.y, [](float value) { return value; });
    else if (call.type == kBFloat16)
        scatter<uint16_t>(w, channels, rows, tile, y, bias, call.y, to_bfloat16);
    else
        scatter<uint16_t>(w, channels, rows, tile, y, bias, call.y, to_float16);
}
