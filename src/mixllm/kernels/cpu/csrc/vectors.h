// Sixteen floats at once, in as many registers as the instruction set needs for them.
#pragma once
#include <cstdint>
#include <cstring>

#include "element.h"

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));

inline Floats load16(const float* from) {
    Floats value;
    std::memcpy(&value, from, 64);
    return value;
}

inline void store16(float* to, Floats value) { std::memcpy(to, &value, 64); }

// Lane i of the result is lane i ^ S.
template <int S>
inline Floats exchange(Floats x) {
#define MIXLLM_LANE(i) ((i) ^ S)
#if defined(__clang__)
    return __builtin_shufflevector(
        x, x, MIXLLM_LANE(0), MIXLLM_LANE(1), MIXLLM_LANE(2), MIXLLM_LANE(3), MIXLLM_LANE(4), MIXLLM_LANE(5),
        MIXLLM_LANE(6), MIXLLM_LANE(7), MIXLLM_LANE(8), MIXLLM_LANE(9), MIXLLM_LANE(10), MIXLLM_LANE(11),
        MIXLLM_LANE(12), MIXLLM_LANE(13), MIXLLM_LANE(14), MIXLLM_LANE(15));
#else
    return __builtin_shuffle(
        x, Ints{MIXLLM_LANE(0), MIXLLM_LANE(1), MIXLLM_LANE(2), MIXLLM_LANE(3), MIXLLM_LANE(4),
                MIXLLM_LANE(5), MIXLLM_LANE(6), MIXLLM_LANE(7), MIXLLM_LANE(8), MIXLLM_LANE(9),
                MIXLLM_LANE(10), MIXLLM_LANE(11), MIXLLM_LANE(12), MIXLLM_LANE(13), MIXLLM_LANE(14),
                MIXLLM_LANE(15)});
#endif
#undef MIXLLM_LANE
}

typedef uint32_t Bits __attribute__((vector_size(64)));
typedef uint16_t Shorts __attribute__((vector_size(32)));

// Sixteen stored elements as floats.
template <class E>
inline Floats load16_as(const typename E::Stored* from) {
    float values[16];
    for (int i = 0; i < 16; i++) values[i] = E::get(from[i]);
    return load16(values);
}

template <>
inline Floats load16_as<Float32>(const float* from) {
    return load16(from);
}

template <>
inline Floats load16_as<BFloat16>(const uint16_t* from) {
    Shorts values;
    std::memcpy(&values, from, 32);
    return Floats(__builtin_convertvector(values, Bits) << 16);
}

// Fewer than sixteen, then zeros.
template <class E>
inline Floats load_some(const typename E::Stored* from, int64_t count) {
    typename E::Stored values[16] = {};
    std::memcpy(values, from, size_t(count) * sizeof *from);
    return load16_as<E>(values);
}

// Lane i of the result is a's sum of lanes i and i ^ S where i has not the bit S, else b's.
template <int S>
inline Floats halves(Floats a, Floats b) {
    Ints second;
    for (int i = 0; i < 16; i++) second[i] = i & S ? -1 : 0;
    return (second ? b : a) + exchange<S>(second ? a : b);
}

// Lane i of the result is the sum of the lanes of v[i]: sixteen sums for little more than the price of one.
inline Floats sums(const Floats (&v)[16]) {
    Floats pairs[8], fours[4];
    for (int i = 0; i < 8; i++) pairs[i] = halves<1>(v[2 * i], v[2 * i + 1]);
    for (int i = 0; i < 4; i++) fours[i] = halves<2>(pairs[2 * i], pairs[2 * i + 1]);
    return halves<8>(halves<4>(fours[0], fours[1]), halves<4>(fours[2], fours[3]));
}

inline float sum(Floats v) {
    v += exchange<8>(v);
    v += exchange<4>(v);
    v += exchange<2>(v);
    return v[0] + v[1];
}

// e^x to about one unit in the last place, for x from -87 to 88, where it is held: the reduction by ln 2 in two
// parts and the polynomial are those of Cephes' expf.
inline Floats exponential(Floats x) {
    constexpr float magic = 12582912.0f; // 1.5 * 2^23: adding it rounds to a whole number
    x = x < -87.0f ? Floats{} - 87.0f : x;
    x = x > 88.0f ? Floats{} + 88.0f : x;
    const Floats shifted = x * 1.44269504f + magic, whole = shifted - magic;
    const Floats r = x - whole * 0.693359375f - whole * -2.12194440e-4f;
    Floats p = Floats{} + 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    return (p * r * r + r + 1.0f) * Floats((Bits(shifted) - (0x4B400000u - 127u)) << 23);
}
