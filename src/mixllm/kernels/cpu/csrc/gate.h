// The gated activation of a decoder's MLP.
#pragma once
#include "vectors.h"

// gate = silu(gate) up, both [count], each step rounded to the type that torch would hold it in.
inline void gated(float* gate, const float* up, int64_t count, int32_t type) {
    with_type(type, [&](auto element) {
        typedef decltype(element) E;
        auto sixteen = [](float* g, const float* u) {
            for (int i = 0; i < 16; i++) g[i] = rounded<E>(g[i]);
            store16(g, load16(g) / (exponential(-load16(g)) + 1.0f));
            for (int i = 0; i < 16; i++) g[i] = rounded<E>(rounded<E>(g[i]) * rounded<E>(u[i]));
        };
        int64_t i = 0;
        for (; i + 16 <= count; i += 16) sixteen(gate + i, up + i);
        if (i == count) return;
        float g[16] = {}, u[16] = {};
        std::memcpy(g, gate + i, size_t(count - i) * 4);
        std::memcpy(u, up + i, size_t(count - i) * 4);
        sixteen(g, u);
        std::memcpy(gate + i, g, size_t(count - i) * 4);
    });
}
