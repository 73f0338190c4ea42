#include <arm_neon.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "isa.h"

// Everything compiled with this file's flags stays in it: the linker must not give it to other files.
namespace {
#include "lanes_neon.h"
#include "product.h"
#include "quantize.h"
} // namespace

const Isa kNeonIsa = {"neon", Neon::kMostTokens, quantize_token, clear_token, product<Neon>};
