// Linear layers with the same input, run as one.
#pragma once
#include "isa.h"

// Weights alike in inputs, activation width and rotation, and a call of each with the same x: quantized once, and
// multiplied in one piece of parallel work. Whether there was memory for it.
bool run_linears(const Isa& isa, const MixllmWeight* const* weights, const MixllmCall* calls, int count);
