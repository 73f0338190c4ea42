// What an instruction set provides; each is compiled in a file of its own with its own compiler flags.
#pragma once
#include "tile.h"

struct Isa {
    const char* name;
    int most_tokens; // in a tile
    void (*quantize)(const MixllmWeight&, const MixllmCall&, const Tile&, int token, float* room);
    void (*clear)(const MixllmWeight&, const Tile&, int token);
    void (*product)(const MixllmWeight&, int64_t block, const Tile&, float* y);
};

extern const Isa kPortableIsa, kAvx2Isa, kAvx512Isa, kNeonIsa;

// The sets that this machine has, best first; the portable one is always the last. Null after the last.
const Isa* isa_at(int32_t index);
