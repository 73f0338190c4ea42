// A product's outputs to their channels, in the type of the call.
#pragma once
#include "element.h"
#include "tile.h"

// y [tile.width][16], without bias.
inline void store(const MixllmWeight& w, const MixllmCall& call, int64_t block, const Tile& tile, const float* y) {
    const int32_t* channels = w.channels + block * kRows;
    for (int t = 0; t < tile.tokens; t++, y += kRows) {
        const int64_t row = (tile.first + t) * w.outputs;
        for (int i = 0; i < kRows; i++) {
            const int32_t channel = channels[i];
            if (channel < 0) continue;
            const float value = call.bias ? y[i] + call.bias[channel] : y[i];
            if (call.type == kFloat32)
                static_cast<float*>(call.y)[row + channel] = value;
            else
                static_cast<uint16_t*>(call.y)[row + channel] =
                    call.type == kBFloat16 ? to_bfloat16(value) : to_float16(value);
        }
    }
}
