// Blocks of 16 rows times tiles of 16 or 32 tokens in AMX's registers.
#pragma once
#include "lanes_avx512.h"
#include "store.h"
#include "unpack_amx.h"

constexpr int64_t kStep = 64; // inputs of one product of registers
// Inputs that are unpacked at once, for no more than 64 tokens and for more: what is read again and again stays in
// the first caches, and sums of many tokens are put aside seldom.
constexpr int64_t kShortSlice = 256, kLongSlice = 1024;
constexpr int64_t kSliceBytes = kLongSlice * kRows; // room for a block's
constexpr int kSums = 16 * kRows; // of 16 tokens

struct Workspace {
    alignas(64) int8_t codes[kMostBlocks * kSliceBytes];
    alignas(64) int32_t part[4 * kSums];
    alignas(64) int32_t sums[kChunk / kMostTokens][kMostBlocks][2 * kSums]; // integers or floats
    alignas(64) float y[kMostBlocks * 2 * kSums];

    // A thread's own, kept between calls.
    static Workspace& get() {
        struct Owner {
            Workspace* space = new Workspace;
            ~Owner() { delete space; }
        };
        static thread_local const Owner owner;
        return *owner.space;
    }
};

// Up to 2 x 2 registers of sums: 16 R tokens by 16 B rows.
template <class M, int R, int B>
struct Panel {
    int32_t* sums[R][B];

    void clear() const {
        M::template zero<0>();
        if constexpr (B > 1) M::template zero<1>();
        if constexpr (R > 1) M::template zero<2>();
        if constexpr (R > 1 && B > 1) M::template zero<3>();
    }
    void load() const {
        M::template load<0>(sums[0][0]);
        if constexpr (B > 1) M::template load<1>(sums[0][1]);
        if constexpr (R > 1) M::template load<2>(sums[1][0]);
        if constexpr (R > 1 && B > 1) M::template load<3>(sums[1][1]);
    }
    void store() const {
        M::template store<0>(sums[0][0]);
        if constexpr (B > 1) M::template store<1>(sums[0][1]);
        if constexpr (R > 1) M::template store<2>(sums[1][0]);
        if constexpr (R > 1 && B > 1) M::template store<3>(sums[1][1]);
    }
    static void add(const int8_t* a, const int8_t* codes, int64_t steps) {
        for (int64_t s = 0; s < steps; s++, a += R * 16 * kStep, codes += kRows * kStep) {
            M::template load<4>(a);
            M::template load<6>(codes);
            M::template multiply<0, 4, 6>();
            if constexpr (B > 1) {
                M::template load<7>(codes + kSliceBytes);
                M::template multiply<1, 4, 7>();
            }
            if constexpr (R > 1) {
                M::template load<5>(a + 16 * kStep);
                M::template multiply<2, 5, 6>();
                if constexpr (B > 1) M::template multiply<3, 5, 7>();
            }
        }
    }
};

// 16 tokens' integers of inputs from k on, which share their scales, are added to their floats.
template <bool ByGroup>
inline void fold(
    const MixllmWeight& w, const Block& b, const Tile& tile, int token, int64_t k, const int32_t* part, int32_t* sums) {
    typedef Avx512 L;
    const float* scales = tile.scales + k / w.activation_width * tile.width + token;
    float* y = reinterpret_cast<float*>(sums);
    L::F scale = L::set_float(1);
    if (ByGroup)
        scale = b.kind == kGroupHalf ? L::load_half(static_cast<const uint16_t*>(b.scales) + kRows * (k / kGroup))
                                     : L::load_float(static_cast<const float*>(b.scales) + kRows * (k / kGroup));
    for (int t = 0; t < 16; t++, part += kRows, y += kRows) {
        L::F value = L::to_float(L::load(part));
        if (ByGroup) value = L::multiply_float(value, scale);
        value = L::multiply_float(value, L::set_float(scales[t]));
        L::store_float(y, k ? L::add_float(L::load_float(y), value) : value);
    }
}

// Inputs [from, to) of a slice's panel. `period` inputs share their scales, or all inputs do where it is 0.
template <class M, int R, int B>
inline void multiply_panel(
    const MixllmWeight& w, const Block* b, const Tile& tile, int64_t from, int64_t to, int64_t period,
    const int8_t* codes, int32_t (*sums)[2 * kSums], int32_t* part) {
    const int8_t* a = tile.codes + from * tile.width;
    Panel<M, R, B> panel;
    for (int r = 0; r < R; r++)
        for (int i = 0; i < B; i++) panel.sums[r][i] = period ? part + (2 * r + i) * kSums : sums[i] + r * kSums;
    if (!period) {
        from ? panel.load() : panel.clear();
        panel.add(a, codes, ceil_div(to - from, kStep));
        panel.store();
        return;
    }
    for (int64_t k = from; k < to; k += period) {
        panel.clear();
        panel.add(a + (k - from) * tile.width, codes + (k - from) * kRows, ceil_div(least(period, to - k), kStep));
        panel.store();
        for (int r = 0; r < R; r++)
            for (int i = 0; i < B; i++) {
                const auto add = b[i].kind == kRowScale ? fold<false> : fold<true>;
                add(w, b[i], tile, 16 * r, k, panel.sums[r][i], sums[i] + r * kSums);
            }
    }
}

// A block's outputs: y [tile.tokens][16].
inline void finish(const Block& b, const Tile& tile, int64_t period, const int32_t* sums, float* y) {
    typedef Avx512 L;
    const float* floats = reinterpret_cast<const float*>(sums);
    for (int t = 0; t < tile.tokens; t++) {
        L::F value = period ? L::load_float(floats + kRows * t)
                            : L::multiply_float(L::to_float(L::load(sums + kRows * t)), L::set_float(tile.scales[t]));
        if (b.kind == kRowScale) value = L::multiply_float(value, L::load_float(b.row_scales));
        L::store_float(y + kRows * t, value);
    }
}

// As declared in isa.h; `blocks` is at most kMostBlocks and `count` what a chunk has.
template <class M>
void multiply_tiles(
    const MixllmWeight& w, const MixllmCall& call, int64_t first, int64_t blocks, const Tile* tiles, int64_t count) {
    Workspace& space = Workspace::get();
    const int64_t padded = padded_inputs(w.inputs);
    Block b[kMostBlocks];
    for (int64_t i = 0; i < blocks; i++) b[i] = block_of(w, first + i);
    const bool whole = b[0].kind == kRowScale && w.activation_width >= w.inputs;
    const int64_t period = whole ? 0 : b[0].kind == kRowScale ? w.activation_width : kGroup;
    const int64_t wanted = count > 2 ? kLongSlice : kShortSlice;
    const int64_t slice = period > wanted ? period : wanted; // a period is 128, 256 or 512 inputs
    M::begin();
    for (int64_t from = 0; from < padded; from += slice) {
        const int64_t to = least(from + slice, padded);
        for (int64_t i = 0; i < blocks; i++)
            (b[i].eight ? unpack8 : unpack4)(b[i], from, to, space.codes + i * kSliceBytes);
        for (int64_t t = 0; t < count; t++)
            for (int64_t i = 0; i < blocks; i += 2) {
                const bool both = i + 1 < blocks, wide = tiles[t].width == 32;
                const auto run = wide ? both ? multiply_panel<M, 2, 2> : multiply_panel<M, 2, 1>
                                      : both ? multiply_panel<M, 1, 2> : multiply_panel<M, 1, 1>;
                run(w, b + i, tiles[t], from, to, period, space.codes + i * kSliceBytes, space.sums[t] + i, space.part);
            }
    }
    M::end();
    for (int64_t t = 0; t < count; t++) {
        for (int64_t i = 0; i < blocks; i++)
            finish(b[i], tiles[t], period, space.sums[t][i], space.y + i * tiles[t].width * kRows);
        store(w, call, first, blocks, tiles[t], space.y);
    }
}
