// Sixteen rows side by side in plain C++: right on any machine, and what every other set is tested against.
#pragma once
#include "element.h"

struct Portable {
    static constexpr int kMostTokens = 4;
    struct V {
        int32_t lane[16];
    };
    struct F {
        float lane[16];
    };
    typedef V Bytes; // four bytes a lane

    template <class Function>
    static V each(Function f) {
        V out;
        for (int i = 0; i < 16; i++) out.lane[i] = f(i);
        return out;
    }
    template <class Function>
    static F each_float(Function f) {
        F out;
        for (int i = 0; i < 16; i++) out.lane[i] = f(i);
        return out;
    }
    // Unsigned, so that a sum over the whole of K may wrap on its way.
    static int32_t wrap(uint32_t value) { return int32_t(value); }

    static V zero() { return V{}; }
    static V load(const int32_t* from) {
        return each([=](int i) { return from[i]; });
    }
    static void store(int32_t* to, V v) { std::memcpy(to, v.lane, 64); }
    static Bytes bytes(const uint8_t* from) {
        Bytes out;
        std::memcpy(&out, from, 64);
        return out;
    }
    static Bytes low(Bytes v) {
        return each([&](int i) { return v.lane[i] & 0x0F0F0F0F; });
    }
    static Bytes high(Bytes v) {
        return each([&](int i) { return wrap(uint32_t(v.lane[i]) >> 4 & 0x0F0F0F0F); });
    }
    static V dot(V sum, Bytes w, const int8_t* a) {
        return each([&](int i) {
            uint32_t bytes = uint32_t(w.lane[i]);
            int32_t product = 0;
            for (int j = 0; j < 4; j++) product += int32_t(bytes >> 8 * j & 255) * a[j];
            return wrap(uint32_t(sum.lane[i]) + uint32_t(product));
        });
    }
    // 4-bit codes only, and 8-bit codes: an instruction set may know better ways for either.
    static V dot4(V sum, Bytes low, Bytes high, const int8_t* a, const int8_t* b) {
        return dot(dot(sum, low, a), high, b);
    }
    static V dot8(V sum, Bytes w, const int8_t* a) { return dot(sum, w, a); }
    static Bytes pairs(const int16_t* from) {
        Bytes out;
        std::memcpy(&out, from, 64);
        return out;
    }
    static V two(const int16_t* from) {
        int32_t both;
        std::memcpy(&both, from, 4);
        return set(both);
    }
    static V dot2(V sum, Bytes w, V two) {
        return each([&](int i) {
            const uint32_t a = uint32_t(w.lane[i]), b = uint32_t(two.lane[i]);
            const int32_t first = int16_t(a) * int16_t(b), second = int16_t(a >> 16) * int16_t(b >> 16);
            return wrap(uint32_t(sum.lane[i]) + uint32_t(first) + uint32_t(second));
        });
    }
    static V widen(const uint8_t* from) {
        return each([=](int i) { return from[i]; });
    }
    static V set(int32_t value) {
        return each([=](int) { return value; });
    }
    static V add(V a, V b) {
        return each([&](int i) { return wrap(uint32_t(a.lane[i]) + uint32_t(b.lane[i])); });
    }
    static V subtract(V a, V b) {
        return each([&](int i) { return wrap(uint32_t(a.lane[i]) - uint32_t(b.lane[i])); });
    }
    static V multiply(V a, V b) {
        return each([&](int i) { return wrap(uint32_t(a.lane[i]) * uint32_t(b.lane[i])); });
    }
    static F to_float(V v) {
        return each_float([&](int i) { return float(v.lane[i]); });
    }
    static F load_float(const float* from) {
        return each_float([=](int i) { return from[i]; });
    }
    static F load_half(const uint16_t* from) {
        return each_float([=](int i) { return from_float16(from[i]); });
    }
    static void store_float(float* to, F v) { std::memcpy(to, v.lane, 64); }
    static F set_float(float value) {
        return each_float([=](int) { return value; });
    }
    static F add_float(F a, F b) {
        return each_float([&](int i) { return a.lane[i] + b.lane[i]; });
    }
    static F multiply_float(F a, F b) {
        return each_float([&](int i) { return a.lane[i] * b.lane[i]; });
    }
};
