#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "isa.h"

// Everything compiled with this file's flags stays in it: the linker must not give it to other files.
namespace {
#include "attend.h"
#include "columns.h"
#include "dense.h"
#include "fixed.h"
#include "gate.h"
#include "quantize.h"
#include "product_amx.h"
#ifdef MIXLLM_EMULATE_AMX
#include "tiles_emulated.h"
typedef EmulatedTiles Tiles;
#else
#include "tiles_amx.h"
typedef AmxTiles Tiles;
#endif
} // namespace

const Isa kAmxIsa = {"amx", kWidths32, kMostBlocks, 8, &kAvx512Isa,
                     quantize_token<64>, clear_token<64>, multiply_tiles<Tiles>, attend, gated, dense, best_grid, round_columns,
    rotate, fixed_rows, fixed_tokens, fixed_product<Avx512>};
