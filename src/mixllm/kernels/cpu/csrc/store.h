// A product's outputs to their channels, in the type of the call.
#pragma once
#include "element.h"
#include "tile.h"

constexpr int kMostBlocks = 8; // that are stored at once

// Where a block's rows go. Only the first `rows` are there; a bias of -0 changes nothing, not even a zero's sign.
struct Outputs {
    const int32_t* channels = nullptr;
    int rows = 0;
    float bias[kRows] = {};

    Outputs() = default;
    Outputs(const MixllmWeight& w, const MixllmCall& call, int64_t block) : channels(w.channels + block * kRows) {
        for (; rows < kRows && channels[rows] >= 0; rows++) bias[rows] = call.bias ? call.bias[channels[rows]] : -0.0f;
    }
    template <class E>
    void put(const float* y, typename E::Stored* to) const {
        typename E::Stored row[kRows];
        for (int i = 0; i < kRows; i++) row[i] = E::put(y[i] + bias[i]);
        if (rows == kRows)
            for (int i = 0; i < kRows; i++) to[channels[i]] = row[i];
        else
            for (int i = 0; i < rows; i++) to[channels[i]] = row[i];
    }
};

// y [blocks][tile.width][16], without bias, of blocks from `first` on. Token by token, so that a line of the output is
// written at once.
inline void store(
    const MixllmWeight& w, const MixllmCall& call, int64_t first, int64_t blocks, const Tile& tile, const float* y) {
    Outputs outputs[kMostBlocks];
    for (int64_t i = 0; i < blocks; i++) outputs[i] = Outputs(w, call, first + i);
    with_type(call.type, [&](auto element) {
        typedef decltype(element) E;
        auto* to = static_cast<typename E::Stored*>(call.y) + tile.first * w.outputs;
        for (int t = 0; t < tile.tokens; t++, to += w.outputs)
            for (int64_t i = 0; i < blocks; i++) outputs[i].put<E>(y + (i * tile.width + t) * kRows, to);
    });
}
