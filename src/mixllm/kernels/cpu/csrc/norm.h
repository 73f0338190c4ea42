// RMSNorm and the rotation of heads by position, rounded where a model in torch rounds.
#pragma once
#include <cmath>

#include "vectors.h"

// y = w (x / sqrt(mean(x^2) + eps)), all [count]; y may be x.
template <class E>
inline void rms_norm(const float* x, const typename E::Stored* weight, int64_t count, float eps, float* y) {
    Floats squares = {};
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) squares += load16(x + i) * load16(x + i);
    if (i < count) squares += load_some<Float32>(x + i, count - i) * load_some<Float32>(x + i, count - i);
    const float scale = 1.0f / std::sqrt(sum(squares) / float(count) + eps);
    for (i = 0; i < count; i++) y[i] = rounded<E>(E::get(weight[i]) * rounded<E>(x[i] * scale));
}

// x cos + (x's halves exchanged, the first negated) sin, in place; x, cos, sin [head].
template <class E>
inline void turn(float* x, const typename E::Stored* cos, const typename E::Stored* sin, int64_t head) {
    const int64_t half = head / 2;
    for (int64_t i = 0; i < half; i++) {
        const float a = x[i], b = x[half + i];
        const float low = rounded<E>(-b * E::get(sin[i])), high = rounded<E>(a * E::get(sin[half + i]));
        x[i] = rounded<E>(rounded<E>(a * E::get(cos[i])) + low);
        x[half + i] = rounded<E>(rounded<E>(b * E::get(cos[half + i])) + high);
    }
}
