// What the kernels are given: a weight in their own order and one call's activations. Plain C types, so that
// the shared library serves every version of torch and of Python.
#pragma once
#include <cstdint>

extern "C" {

// How a row's integers become its output; see docs/format.md, "weight_scale".
enum ScaleKind : int32_t { kRowScale = 0, kGroupHalf = 1, kGroupFloat = 2 };

enum ElementType : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// Rows in blocks of 16, 4-bit blocks and 8-bit blocks apart; see docs/cpu.md, "Layout". K is filled up to a
// multiple of 8 inputs, rows to a multiple of 16.
struct MixllmWeight {
    const uint8_t* codes4;   // [blocks4][inputs / 8][16 rows][4 bytes]
    const uint8_t* codes8;   // [blocks8][inputs / 4][16 rows][4 bytes], the code + 128
    const uint8_t* zeros4;   // [blocks4][groups or 1][16]
    const uint8_t* factors4; // multipliers, [blocks4][groups or 1][16]; only for kRowScale
    const void* scales4;     // group scales, [blocks4][groups][16], float16 or float32
    const void* scales8;     // likewise for 8-bit rows
    const float* row_scales; // [16 (blocks4 + blocks8)]; only for kRowScale
    const int32_t* channels; // [16 (blocks4 + blocks8)], each row's output channel, -1 where there is none
    int64_t inputs;          // K
    int64_t outputs;         // N
    int64_t blocks4, blocks8;
    int64_t zero_groups;      // groups of zeros4 and factors4: ceil(K / 128), or 1 for the whole row
    int64_t activation_width; // inputs that share an activation scale
    int32_t scale_kind;       // of 4-bit rows: ScaleKind
    int32_t scale_kind8;      // of 8-bit rows
    int32_t rotate;
};

struct MixllmCall {
    const void* x; // [tokens, inputs], rows `pitch` elements apart
    void* y;       // [tokens, outputs], contiguous, of the type of x
    const float* bias; // [outputs] or null
    int64_t tokens, pitch;
    int32_t type; // ElementType
    int32_t isa;  // as mixllm_isa_name counts them
};
}

constexpr int64_t kGroup = 128;
constexpr int kRows = 16;

// static: a file compiled for one instruction set must not lend its copy to another.
static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t padded_inputs(int64_t inputs) { return ceil_div(inputs, 8) * 8; }
