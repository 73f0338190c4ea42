// Quantized activations of a few tokens, in the order in which the product reads them.
#pragma once
#include "weight.h"

// Codes of `width` tokens, a run of inputs of one token side by side: [inputs / run][width][run]. The run is the
// instruction set's.
struct Tile {
    int8_t* codes;
    int32_t* sums; // of the codes: [groups][width]
    float* scales; // [activation groups][width]
    int64_t first; // the number of its first token
    int width;     // how many tokens it has room for
    int tokens;    // how many it holds
};

// The longest run: a multiple of it has room for the codes of any instruction set.
constexpr int64_t kLongestRun = 64;
constexpr int kMostTokens = 32;
// Tokens that are quantized before they are multiplied: what they take stays in the caches.
constexpr int64_t kChunk = 384;

// Widths that a product is compiled for, up to the largest that an instruction set's registers hold; 0 ends them.
constexpr int kWidths4[] = {1, 2, 4, 0}, kWidths24[] = {1, 2, 4, 8, 12, 16, 24, 0}, kWidths32[] = {16, 32, 0};

static inline int tile_width(int64_t tokens, const int* widths) {
    while (*widths < tokens && widths[1]) widths++;
    return *widths;
}
