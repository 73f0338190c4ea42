#include <arm_neon.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "isa.h"

// Everything compiled with this file's flags stays in it: the linker must not give it to other files.
namespace {
#include "sums_i8mm.h"
#include "lanes_portable.h"
#include "attend.h"
#include "columns.h"
#include "dense.h"
#include "fixed.h"
#include "gate.h"
#include "quantize.h"
} // namespace

const Isa kI8mmIsa = {"i8mm", kWidths4, 1, 0, nullptr, quantize_token<4>, clear_token<4>, multiply<I8mm>, attend, gated, dense, best_grid, round_columns,
    rotate, fixed_rows, fixed_tokens, fixed_product<Portable>};
