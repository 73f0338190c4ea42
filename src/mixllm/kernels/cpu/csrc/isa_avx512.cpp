#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "isa.h"

// Everything compiled with this file's flags stays in it: the linker must not give it to other files.
namespace {
#include "lanes_avx512.h"
#include "attend.h"
#include "columns.h"
#include "dense.h"
#include "fixed.h"
#include "gate.h"
#include "product.h"
#include "quantize.h"
} // namespace

const Isa kAvx512Isa = {"avx512", kWidths24, 1, 0, nullptr, quantize_token<4>, clear_token<4>, multiply<Avx512>, attend, gated, dense, best_grid, round_columns,
    rotate, fixed_rows, fixed_tokens, fixed_product<Avx512>};
