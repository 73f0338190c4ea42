// What a product of float32 matrices in 16-bit fixed point is given; see mixllm/kernels/cpu/fixed.py.
#pragma once
#include "weight.h"

extern "C" {

// Rows of a matrix as 16-bit integers.
struct MixllmFixedRows {
    const float* x;  // [rows][inputs], rows `pitch` elements apart
    int16_t* codes;  // [blocks][ceil(inputs / 2)][16 rows][2]
    float* scales;   // [16 blocks]
    int64_t rows, inputs, pitch;
    int64_t blocks;  // of 16 rows, an even number of them; zeros where there are no rows
    int32_t isa;
};

// y = x w'; or, where there is a delta, of p = delta (x w') the sums over each `length` tokens of p and of p^2.
struct MixllmFixed {
    const float* x;       // [tokens][inputs], rows `pitch` elements apart
    const int16_t* codes; // w's, as MixllmFixedRows has them
    const float* scales;
    float* y;           // [tokens][outputs]
    const float* delta; // [tokens][period]; output c is multiplied by number c mod period
    float *sums, *squares; // [tokens / length][outputs], zeros at first
    int64_t tokens, inputs, pitch, outputs, blocks, length, period;
    int32_t isa;
};
}

// Tokens of a tile and blocks of rows that are multiplied at once: their sums take 24 registers, and each number
// that is read is used more than once.
constexpr int kFixedTokens = 12, kFixedBlocks = 2;

// Some tokens as integers: codes [ceil(inputs / 2)][12][2], scales [12].
struct FixedTile {
    int16_t* codes;
    float* scales;
    int64_t first;
    int tokens;
};
