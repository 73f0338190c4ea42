// Sixteen rows in four 128-bit registers; sdot multiplies signed bytes, so 8-bit codes lose their 128 first and
// get it back as 128 times the sum of the four activations, which keeps one formula for all instruction sets.
#pragma once
#include <arm_neon.h>

#include "element.h"

struct Neon {
    static constexpr int kMostTokens = 4;
    struct V {
        int32x4_t lane[4];
    };
    struct F {
        float32x4_t lane[4];
    };
    struct Bytes {
        uint8x16_t lane[4];
    };

    template <class Function>
    static V each(Function f) {
        return V{{f(0), f(1), f(2), f(3)}};
    }
    template <class Function>
    static F each_float(Function f) {
        return F{{f(0), f(1), f(2), f(3)}};
    }
    static int8x16_t four(const int8_t* a) {
        int32_t word;
        std::memcpy(&word, a, 4);
        return vreinterpretq_s8_s32(vdupq_n_s32(word));
    }

    static V zero() { return set(0); }
    static V load(const int32_t* from) {
        return each([=](int i) { return vld1q_s32(from + 4 * i); });
    }
    static void store(int32_t* to, V v) {
        for (int i = 0; i < 4; i++) vst1q_s32(to + 4 * i, v.lane[i]);
    }
    static Bytes bytes(const uint8_t* from) {
        return Bytes{{vld1q_u8(from), vld1q_u8(from + 16), vld1q_u8(from + 32), vld1q_u8(from + 48)}};
    }
    static Bytes low(Bytes v) {
        for (uint8x16_t& lane : v.lane) lane = vandq_u8(lane, vdupq_n_u8(15));
        return v;
    }
    static Bytes high(Bytes v) {
        for (uint8x16_t& lane : v.lane) lane = vshrq_n_u8(lane, 4);
        return v;
    }
    static V dot4(V sum, Bytes low, Bytes high, const int8_t* a, const int8_t* b) {
        const int8x16_t x = four(a), y = four(b);
        return each([&](int i) {
            const int32x4_t first = vdotq_s32(sum.lane[i], vreinterpretq_s8_u8(low.lane[i]), x);
            return vdotq_s32(first, vreinterpretq_s8_u8(high.lane[i]), y);
        });
    }
    static V dot8(V sum, Bytes w, const int8_t* a) {
        const int8x16_t x = four(a);
        const int32x4_t offset = vdupq_n_s32(128 * (a[0] + a[1] + a[2] + a[3]));
        return each([&](int i) {
            const int8x16_t code = vreinterpretq_s8_u8(veorq_u8(w.lane[i], vdupq_n_u8(128)));
            return vdotq_s32(vaddq_s32(sum.lane[i], offset), code, x);
        });
    }
    static V widen(const uint8_t* from) {
        const uint8x16_t bytes = vld1q_u8(from);
        const uint16x8_t first = vmovl_u8(vget_low_u8(bytes)), second = vmovl_u8(vget_high_u8(bytes));
        return V{{vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(first))),
                  vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(first))),
                  vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(second))),
                  vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(second)))}};
    }
    static V set(int32_t value) {
        return each([=](int) { return vdupq_n_s32(value); });
    }
    static V add(V a, V b) {
        return each([&](int i) { return vaddq_s32(a.lane[i], b.lane[i]); });
    }
    static V subtract(V a, V b) {
        return each([&](int i) { return vsubq_s32(a.lane[i], b.lane[i]); });
    }
    static V multiply(V a, V b) {
        return each([&](int i) { return vmulq_s32(a.lane[i], b.lane[i]); });
    }
    static F to_float(V v) {
        return each_float([&](int i) { return vcvtq_f32_s32(v.lane[i]); });
    }
    static F load_float(const float* from) {
        return each_float([=](int i) { return vld1q_f32(from + 4 * i); });
    }
    static F load_half(const uint16_t* from) {
        return each_float([=](int i) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from + 4 * i))); });
    }
    static void store_float(float* to, F v) {
        for (int i = 0; i < 4; i++) vst1q_f32(to + 4 * i, v.lane[i]);
    }
    static F set_float(float value) {
        return each_float([=](int) { return vdupq_n_f32(value); });
    }
    static F add_float(F a, F b) {
        return each_float([&](int i) { return vaddq_f32(a.lane[i], b.lane[i]); });
    }
    static F multiply_float(F a, F b) {
        return each_float([&](int i) { return vmulq_f32(a.lane[i], b.lane[i]); });
    }
};
