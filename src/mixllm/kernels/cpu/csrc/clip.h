// The clip search on a strip of rows, in the arithmetic of mixllm.rounding.grid, step by step; a row is a lane, and
// only the error's sum may take another order than torch's.
#pragma once
#include "element.h"
#include "rounding.h"

// Half to even, and what is too large for it is clamped anyway.
inline float nearest(float value) { return (value + 12582912.0f) - 12582912.0f; }
inline float lesser(float a, float b) { return a < b ? a : b; }
inline float greater(float a, float b) { return a > b ? a : b; }

// A scale as it is stored in float16, at least its smallest normal value.
inline float as_half(float scale) {
    const float half = rounded<Float16>(lesser(scale, 65504.0f));
    return scale > 0 ? greater(half, 6.103515625e-05f) : half;
}

inline void best_grid(const MixllmClip& c, int64_t first, int64_t count) {
    float w[kGroup][kStrip] = {}, top[kStrip], most[kStrip], own[kStrip], down[kStrip] = {}, up[kStrip] = {};
    bool searched = c.group_floats;
    for (int64_t r = 0; r < kStrip; r++) {
        const int64_t row = first + least(r, count - 1);
        top[r] = c.by_row[row], most[r] = c.by_row[c.rows + row], own[r] = c.by_row[2 * c.rows + row];
        // A row with one multiplier and no zero point has one grid.
        searched |= top[r] != 127.0f;
    }
    for (int64_t j = 0; j < c.length; j++) {
        std::memcpy(w[j], c.w + j * c.rows + first, size_t(count) * 4);
        for (int64_t r = 0; r < kStrip; r++) down[r] = lesser(down[r], w[j][r]), up[r] = greater(up[r], w[j][r]);
    }
    float best[5][kStrip] = {}, smallest[kStrip];
    for (int64_t step = 0; step < (searched ? c.steps : 1); step++) {
        float now[5][kStrip], error[kStrip] = {};
        float *scale = now[0], *zero = now[1], *low = now[2], *high = now[3], *multiplier = now[4];
        for (int64_t r = 0; r < kStrip; r++) {
            const bool free = top[r] != 127.0f, wide = top[r] > 15.0f;
            const float start = down[r] * c.shrinks[step], stop = up[r] * c.shrinks[step];
            scale[r] = (free ? stop - start : greater(-start, stop)) / top[r];
            multiplier[r] = 1;
            if (c.group_floats) {
                scale[r] = own[r] != 0 ? as_half(scale[r]) : scale[r];
            } else {
                const float steps = scale[r] / own[r];
                multiplier[r] = lesser(greater(wide ? std::ceil(steps) : nearest(steps), 1.0f), most[r]);
                scale[r] = own[r] * multiplier[r];
            }
            scale[r] = scale[r] > 0 ? scale[r] : 1.0f;
            zero[r] = free ? lesser(greater(nearest(-start / scale[r]), 0.0f), top[r]) : 0.0f;
            const float bottom = wide ? -127.0f : -128.0f;
            low[r] = free ? greater(zero[r] + std::ceil(bottom / multiplier[r]), 0.0f) : -127.0f;
            high[r] = lesser(zero[r] + std::floor(127.0f / multiplier[r]), top[r]);
        }
        for (int64_t j = 0; j < c.length; j++)
            for (int64_t r = 0; r < kStrip; r++) {
                const float code = lesser(greater(nearest(w[j][r] / scale[r]) + zero[r], low[r]), high[r]);
                const float off = w[j][r] - (code - zero[r]) * scale[r];
                error[r] += off * off * c.importance[j];
            }
        for (int64_t r = 0; r < kStrip; r++) {
            const bool better = step == 0 || error[r] < smallest[r];
            smallest[r] = better ? error[r] : smallest[r];
            for (int field = 0; field < 5; field++) best[field][r] = better ? now[field][r] : best[field][r];
        }
    }
    for (int field = 0; field < 5; field++)
        std::memcpy(c.fields + field * c.rows + first, best[field], size_t(count) * 4);
}
