// float16 and bfloat16 to and from float32, rounding half to even as torch does; they compile to vector code.
#pragma once
#include <cstdint>
#include <cstring>

#include "weight.h"

inline float from_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline uint32_t to_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

inline float from_bfloat16(uint16_t value) { return from_bits(uint32_t(value) << 16); }

inline uint16_t to_bfloat16(float value) {
    uint32_t bits = to_bits(value);
    uint32_t rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
    return uint16_t((bits & 0x7FFFFFFF) > 0x7F800000 ? 0x7FC0 : rounded);
}

// The exponent is moved by a product with 2^112, which also makes subnormals right.
inline float from_float16(uint16_t value) {
    uint32_t sign = uint32_t(value & 0x8000) << 16, rest = uint32_t(value & 0x7FFF) << 13;
    float magnitude = from_bits(rest) * from_bits(0x77800000);
    if (rest >= 0x0F800000) magnitude = from_bits(rest | 0x7F800000);
    return from_bits(to_bits(magnitude) | sign);
}

inline uint16_t to_float16(float value) {
    uint32_t bits = to_bits(value), sign = bits >> 16 & 0x8000, rest = bits & 0x7FFFFFFF;
    uint32_t normal = (rest + 0xC8000FFF + (rest >> 13 & 1)) >> 13;
    // Adding 0.5 leaves the subnormal's bits, rounded, at the end of the sum's fraction.
    uint32_t subnormal = to_bits(from_bits(rest) + 0.5f) - 0x3F000000;
    uint32_t half = rest < 0x38800000 ? subnormal : normal;
    if (rest >= 0x477FF000) half = 0x7C00;
    if (rest > 0x7F800000) half = 0x7E00;
    return uint16_t(half | sign);
}

// The types of elements by one interface.
struct Float32 {
    typedef float Stored;
    static float get(float value) { return value; }
    static float put(float value) { return value; }
};

struct BFloat16 {
    typedef uint16_t Stored;
    static float get(uint16_t value) { return from_bfloat16(value); }
    static uint16_t put(float value) { return to_bfloat16(value); }
};

struct Float16 {
    typedef uint16_t Stored;
    static float get(uint16_t value) { return from_float16(value); }
    static uint16_t put(float value) { return to_float16(value); }
};

// f(Float32()), f(BFloat16()) or f(Float16()).
template <class Function>
inline void with_type(int32_t type, const Function& f) {
    if (type == kFloat32)
        f(Float32());
    else if (type == kBFloat16)
        f(BFloat16());
    else
        f(Float16());
}

// What a value becomes where torch stores it.
template <class E>
inline float rounded(float value) {
    return E::get(E::put(value));
}
