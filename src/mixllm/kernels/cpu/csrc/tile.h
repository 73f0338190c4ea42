// Quantized activations of a few tokens, in the order in which the product reads them.
#pragma once
#include "weight.h"

// Codes of `width` tokens, four inputs of one token side by side: [inputs / 4][width][4].
struct Tile {
    int8_t* codes;
    int32_t* sums; // of the codes: [groups][width]
    float* scales; // [activation groups][width]
    int64_t first; // the number of its first token
    int width;     // how many tokens it has room for
    int tokens;    // how many it holds
};

// The widths that a product is compiled for, up to the largest that an instruction set's registers hold.
constexpr int kWidths[] = {1, 2, 4, 8, 12, 16, 24};
constexpr int kMostTokens = 24;

static inline int tile_width(int64_t tokens, int most) {
    for (int width : kWidths)
        if (width >= tokens || width == most) return width;
    return most;
}
