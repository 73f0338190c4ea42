// What rounding a group of a weight's inputs is given, in plain C types; see mixllm/rounding. Weights lie column by
// column: [length][rows], length at most kGroup.
#pragma once
#include "weight.h"

extern "C" {

// The grid of each row that has the least error among some shrinks of the group's range (mixllm.rounding.clip).
struct MixllmClip {
    const float* w;          // [length][rows]
    const float* importance; // [length]
    const float* shrinks;    // [steps]
    const float* by_row;     // [3][rows], see mixllm.rounding.grid.Grids
    float* fields;           // [5][rows]: scale, zero, low, high, multiplier
    int64_t length, rows, steps;
    int32_t group_floats; // whether a group has a scale of its own, or a multiple of its row's
    int32_t isa;
};

// GPTQ's inner loop (mixllm.rounding.columns).
struct MixllmColumns {
    const float* w;      // [length][rows]
    const float* origin; // likewise: what errors are counted from; null, the weights as corrected so far
    const float *scale, *zero, *low, *high; // [rows]
    const float* upper;  // [length][length], rows `pitch` elements apart
    float *codes, *errors; // [length][rows]
    int64_t length, rows, pitch;
    int32_t isa;
};

// Rows that are rotated in place (mixllm.rotation).
struct MixllmRotation {
    float* x; // [rows][inputs]
    int64_t rows, inputs;
    int32_t isa;
};
}

// Rows that a strip of work has: their weights fit a core's first cache.
constexpr int64_t kStrip = 32;
