// What a step of a decoder is given: a few tokens of one sequence, through blocks of one shape, in plain C types.
#pragma once
#include "weight.h"

extern "C" {

struct MixllmProjection {
    const MixllmWeight* weight;
    const float* bias; // [outputs] or null
};

struct MixllmNorm {
    const void* weight; // of the step's type; null, no norm
    float eps;
};

// x += output(attention(norm x)); x += down(silu(gate(after x)) up(after x)).
struct MixllmBlock {
    MixllmProjection query, key, value, output, gate, up, down;
    MixllmNorm norm, after, query_norm, key_norm;
    void *keys, *values; // [kv_heads][room][head], of the step's type; the tokens' own are written from `past` on
    float scaling;
};

struct MixllmStep {
    const MixllmBlock* blocks;
    int64_t count;
    MixllmNorm norm; // after the last block
    const void* x;   // [tokens][hidden]
    void* y;         // likewise
    const void *cos, *sin; // [tokens][head]
    int64_t tokens, past, room, heads, kv_heads, head;
    int32_t type; // ElementType
    int32_t isa;
};

// y = x weight^T, all of one type, for a few tokens.
struct MixllmDense {
    const void* x;      // [tokens][inputs]
    const void* weight; // [outputs][inputs]
    void* y;            // [tokens][outputs]
    int64_t tokens, inputs, outputs;
    int32_t type; // ElementType
    int32_t isa;
};
}
