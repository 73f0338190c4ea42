// Rows of a weight that is not quantized times a few tokens, at the speed of memory.
#pragma once
#include "block.h"
#include "vectors.h"

// Elements that are taken at once, in an order in which they are cheap to widen; of bfloat16 those at even places, then
// the others.
constexpr int64_t kDenseRun = 32;

inline int64_t dense_inputs(int64_t inputs) { return ceil_div(inputs, kDenseRun) * kDenseRun; }

template <class E>
inline void load32(const typename E::Stored* from, Floats (&to)[2]) {
    to[0] = load16_as<E>(from);
    to[1] = load16_as<E>(from + 16);
}

template <>
inline void load32<BFloat16>(const uint16_t* from, Floats (&to)[2]) {
    Bits pairs;
    std::memcpy(&pairs, from, 64);
    to[0] = Floats(pairs << 16);
    to[1] = Floats(pairs & 0xFFFF0000u);
}

// A vector in that order, filled up with zeros to whole runs.
template <class E>
inline void arrange(const typename E::Stored* from, int64_t count, float* to) {
    for (int64_t k = 0; k < count; k += kDenseRun, to += kDenseRun) {
        typename E::Stored run[kDenseRun] = {};
        std::memcpy(run, from + k, size_t(least(kDenseRun, count - k)) * sizeof *from);
        Floats both[2];
        load32<E>(run, both);
        store16(to, both[0]);
        store16(to + 16, both[1]);
    }
}

// R rows by T tokens, summed in float32. x [tokens][dense_inputs], arranged.
template <class E, int R, int T>
inline void dense_tile(const MixllmDense& d, const float* x, int64_t row, int64_t token) {
    typedef typename E::Stored Stored;
    const int64_t pitch = dense_inputs(d.inputs), whole = d.inputs / kDenseRun * kDenseRun;
    const Stored* weight = static_cast<const Stored*>(d.weight) + row * d.inputs;
    x += token * pitch;
    Floats dots[R][T] = {};
    auto add = [&](int r, const Stored* w, int64_t k) {
        Floats both[2];
        load32<E>(w, both);
        for (int t = 0; t < T; t++) {
            dots[r][t] += both[0] * load16(x + t * pitch + k);
            dots[r][t] += both[1] * load16(x + t * pitch + k + 16);
        }
    };
    for (int64_t k = 0; k < whole; k += kDenseRun)
        for (int r = 0; r < R; r++) {
            // About eight rows further, whose turn comes next.
            const char* w = reinterpret_cast<const char*>(weight + r * d.inputs + k);
            __builtin_prefetch(w + 2 * kAhead);
            if (sizeof(Stored) == 4) __builtin_prefetch(w + 2 * kAhead + 64);
            add(r, weight + r * d.inputs + k, k);
        }
    if (whole < d.inputs)
        for (int r = 0; r < R; r++) {
            Stored rest[kDenseRun] = {};
            std::memcpy(rest, weight + r * d.inputs + whole, size_t(d.inputs - whole) * sizeof(Stored));
            add(r, rest, whole);
        }
    for (int t = 0; t < T; t++)
        for (int r = 0; r < R; r++)
            static_cast<Stored*>(d.y)[(token + t) * d.outputs + row + r] = E::put(sum(dots[r][t]));
}

// `rows` outputs of T tokens.
template <class E, int T>
inline void dense_tokens(const MixllmDense& d, const float* x, int64_t first, int64_t rows, int64_t token) {
    constexpr int R = T == 4 ? 4 : 8;
    int64_t row = first;
    for (; row + R <= first + rows; row += R) dense_tile<E, R, T>(d, x, row, token);
    for (; row < first + rows; row++) dense_tile<E, 1, T>(d, x, row, token);
}

// Outputs [first, first + rows) of all tokens; the rows fit a cache, so that only their first reading is from memory.
inline void dense(const MixllmDense& d, const float* x, int64_t first, int64_t rows) {
    with_type(d.type, [&](auto element) {
        typedef decltype(element) E;
        int64_t t = 0;
        for (; t + 4 <= d.tokens; t += 4) dense_tokens<E, 4>(d, x, first, rows, t);
        for (; t + 2 <= d.tokens; t += 2) dense_tokens<E, 2>(d, x, first, rows, t);
        if (t < d.tokens) dense_tokens<E, 1>(d, x, first, rows, t);
    });
}
