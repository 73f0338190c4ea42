// One query against the keys and values that are kept of its head.
#pragma once
#include "vectors.h"

// Scores of keys [from, from + count), count up to 16: lane i is q . keys[from + i].
template <class E>
inline Floats scores_of(const float* q, const typename E::Stored* keys, int64_t head, int64_t count) {
    Floats dots[16] = {};
    const int64_t whole = head / 16 * 16;
    for (int64_t i = 0; i < count; i++) {
        const typename E::Stored* key = keys + i * head;
        Floats dot = {};
        for (int64_t d = 0; d < whole; d += 16) dot += load16(q + d) * load16_as<E>(key + d);
        if (whole < head)
            dot += load_some<Float32>(q + whole, head - whole) * load_some<E>(key + whole, head - whole);
        dots[i] = dot;
    }
    return sums(dots);
}

// out[0 .. 16 C) = the sum of p[i] values[i], rows `head` apart.
template <class E, int C>
inline void mix_values(const float* p, const typename E::Stored* values, int64_t head, int64_t count, float* out) {
    Floats total[C] = {};
    for (int64_t i = 0; i < count; i++)
        for (int c = 0; c < C; c++) total[c] += p[i] * load16_as<E>(values + i * head + 16 * c);
    for (int c = 0; c < C; c++) store16(out + 16 * c, total[c]);
}

// softmax(scaling q . keys) . values, in float32. q, out [head]; keys, values [count][head] of type `type`; p has room
// for `count` floats, rounded up to a multiple of 16.
inline void attend(
    const float* q, const void* all_keys, const void* all_values, int64_t count, int64_t head, float scaling,
    int32_t type, float* p, float* out) {
    with_type(type, [&](auto element) {
        typedef decltype(element) E;
        const auto* keys = static_cast<const typename E::Stored*>(all_keys);
        const auto* values = static_cast<const typename E::Stored*>(all_values);
        const Ints lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        Floats largest = Floats{} - __builtin_inff();
        for (int64_t i = 0; i < count; i += 16) {
            Floats scores = scores_of<E>(q, keys + i * head, head, least(16, count - i)) * scaling;
            scores = lane < int32_t(least(16, count - i)) ? scores : Floats{} - __builtin_inff();
            largest = scores > largest ? scores : largest;
            store16(p + i, scores);
        }
        float most = largest[0];
        for (int i = 1; i < 16; i++) most = largest[i] > most ? largest[i] : most;
        Floats total = {};
        for (int64_t i = 0; i < count; i += 16) {
            const Floats below = load16(p + i) - most;
            // Beside the largest, e^0, nothing is left of it; subnormal products would be very slow.
            const Floats weights = below < -60.0f ? Floats{} : exponential(below);
            total += weights;
            store16(p + i, weights);
        }
        const float scale = 1.0f / sum(total);
        int64_t d = 0;
        for (; d + 64 <= head; d += 64) mix_values<E, 4>(p, values + d, head, count, out + d);
        for (; d + 16 <= head; d += 16) mix_values<E, 1>(p, values + d, head, count, out + d);
        for (; d < head; d++) {
            out[d] = 0;
            for (int64_t i = 0; i < count; i++) out[d] += p[i] * E::get(values[i * head + d]);
        }
        for (d = 0; d < head; d++) out[d] *= scale;
    });
}
