// GPTQ's inner loop on a strip of rows: a row is a lane, and the strip's weights stay in a core's first cache.
#pragma once
#include "clip.h"

inline void round_columns(const MixllmColumns& c, int64_t first, int64_t count) {
    float w[kGroup][kStrip] = {}, scale[kStrip], zero[kStrip], low[kStrip], high[kStrip];
    for (int64_t r = 0; r < kStrip; r++) {
        const int64_t row = first + least(r, count - 1);
        scale[r] = c.scale[row], zero[r] = c.zero[row], low[r] = c.low[row], high[r] = c.high[row];
    }
    const size_t bytes = size_t(count) * 4;
    for (int64_t j = 0; j < c.length; j++) std::memcpy(w[j], c.w + j * c.rows + first, bytes);
    for (int64_t j = 0; j < c.length; j++) {
        const float* upper = c.upper + j * c.pitch;
        float start[kStrip], code[kStrip], error[kStrip];
        std::memcpy(start, w[j], sizeof start);
        if (c.origin) std::memcpy(start, c.origin + j * c.rows + first, bytes);
        for (int64_t r = 0; r < kStrip; r++) {
            code[r] = lesser(greater(nearest(w[j][r] / scale[r]) + zero[r], low[r]), high[r]);
            error[r] = (start[r] - (code[r] - zero[r]) * scale[r]) / upper[j];
        }
        std::memcpy(c.codes + j * c.rows + first, code, bytes);
        std::memcpy(c.errors + j * c.rows + first, error, bytes);
        for (int64_t k = j + 1; k < c.length; k++)
            for (int64_t r = 0; r < kStrip; r++) w[k][r] -= error[r] * upper[k];
    }
}
