// Where the numbers of a block of 16 rows begin.
#pragma once
#include "weight.h"

// Bytes of weights asked for ahead of their use: hardware stops at a page's end.
constexpr int64_t kAhead = 4096;

struct Block {
    bool eight; // its rows have 8 bits
    int32_t kind; // ScaleKind
    const uint8_t *codes, *zeros, *factors;
    const void* scales;
    const float* row_scales;
    int64_t zero_step; // bytes from one group's zeros to the next's; 0 where a row has one
};

inline Block block_of(const MixllmWeight& w, int64_t block) {
    const int64_t groups = ceil_div(w.inputs, kGroup), padded = padded_inputs(w.inputs);
    Block b;
    b.eight = block >= w.blocks4;
    const int64_t at = b.eight ? block - w.blocks4 : block;
    b.kind = b.eight ? w.scale_kind8 : w.scale_kind;
    const int64_t scale_bytes = b.kind == kGroupHalf ? 2 : 4;
    b.codes = b.eight ? w.codes8 + at * kRows * padded : w.codes4 + at * kRows * padded / 2;
    b.zero_step = w.zero_groups == 1 ? 0 : kRows;
    b.zeros = w.zeros4 + at * w.zero_groups * kRows;
    b.factors = w.factors4 + at * w.zero_groups * kRows;
    b.scales = static_cast<const uint8_t*>(b.eight ? w.scales8 : w.scales4) + at * groups * kRows * scale_bytes;
    b.row_scales = w.row_scales + block * kRows;
    return b;
}
