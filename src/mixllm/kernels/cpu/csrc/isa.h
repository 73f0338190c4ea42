// What an instruction set provides; each is compiled in a file of its own with its own compiler flags.
#pragma once
#include "decoder.h"
#include "fixed_call.h"
#include "rounding.h"
#include "tile.h"

struct Isa {
    const char* name;
    const int* widths;  // of a tile, in tokens
    int most_blocks;    // of rows that one call of multiply gains from
    int64_t few_tokens; // a call with no more than these is faster with `for_few`
    const Isa* for_few;
    void (*quantize)(const MixllmWeight&, const MixllmCall&, const Tile&, int token, float* room);
    void (*clear)(const MixllmWeight&, const Tile&, int token);
    // The outputs of `blocks` blocks of rows, from block `first` on, for all tokens of `count` tiles.
    void (*multiply)(
        const MixllmWeight&, const MixllmCall&, int64_t first, int64_t blocks, const Tile* tiles, int64_t count);
    // Between the layers of a decoder; see attend.h, gate.h, dense.h.
    void (*attend)(const float* q, const void* keys, const void* values, int64_t count, int64_t head, float scaling,
                   int32_t type, float* p, float* out);
    void (*gated)(float* gate, const float* up, int64_t count, int32_t type);
    void (*dense)(const MixllmDense&, const float* x, int64_t first, int64_t rows);
    // Of a strip of at most kStrip rows; see clip.h, columns.h.
    void (*best_grid)(const MixllmClip&, int64_t first, int64_t count);
    void (*round_columns)(const MixllmColumns&, int64_t first, int64_t count);
    void (*rotate)(float* x, int64_t inputs); // a row, see hadamard.h
    // Of float32 matrices as integers; see fixed.h.
    void (*fixed_rows)(const MixllmFixedRows&, int64_t block);
    void (*fixed_tokens)(const MixllmFixed&, const FixedTile&);
    void (*fixed_product)(const MixllmFixed&, int64_t block, const FixedTile* tiles, int64_t count);
};

extern const Isa kPortableIsa, kAvx2Isa, kAvxVnniIsa, kAvx512Isa, kAmxIsa, kNeonIsa, kI8mmIsa;

// The sets that this machine has, best first; the portable one is always the last. Null after the last.
const Isa* isa_at(int32_t index);
