// The block Hadamard rotation of activations, bit for bit that of docs/format.md, "Rotation".
#pragma once
#include <cmath>

#include "vectors.h"

// (a, b) -> (a + b, a - b) for lanes S apart. a - b is a + (-b) in every bit.
template <int S>
inline Floats butterfly(Floats x) {
    constexpr int32_t minus = INT32_MIN;
    Ints sign;
    for (int i = 0; i < 16; i++) sign[i] = i & S ? minus : 0;
    return exchange<S>(x) + Floats(Ints(x) ^ sign);
}

template <int Size> // a multiple of 16
inline void hadamard_vectors(float* x, float norm) {
    constexpr int count = Size / 16;
    Floats v[count];
    for (int i = 0; i < count; i++)
        v[i] = butterfly<8>(butterfly<4>(butterfly<2>(butterfly<1>(load16(x + 16 * i)))));
    for (int stride = 1; stride < count; stride *= 2)
        for (int i = 0; i < count; i++)
            if (!(i & stride)) {
                Floats a = v[i], b = v[i + stride];
                v[i] = a + b;
                v[i + stride] = a - b;
            }
    for (int i = 0; i < count; i++) store16(x + 16 * i, v[i] * norm);
}

inline void hadamard_block(float* x, int size) {
    float norm = float(1.0 / std::sqrt(double(size)));
    switch (size) {
        case 128: return hadamard_vectors<128>(x, norm);
        case 64: return hadamard_vectors<64>(x, norm);
        case 32: return hadamard_vectors<32>(x, norm);
        case 16: return hadamard_vectors<16>(x, norm);
    }
    for (int stride = 1; stride < size; stride *= 2)
        for (int i = 0; i < size; i++)
            if (!(i & stride)) {
                float a = x[i], b = x[i + stride];
                x[i] = a + b;
                x[i + stride] = a - b;
            }
    for (int i = 0; i < size; i++) x[i] *= norm;
}

inline void rotate(float* x, int64_t inputs) {
    int64_t whole = inputs / 128 * 128, rest = inputs - whole;
    for (int64_t k = 0; k < whole; k += 128) hadamard_block(x + k, 128);
    int block = int(rest & -rest);
    for (int64_t k = whole; k < inputs; k += block) hadamard_block(x + k, block);
}
