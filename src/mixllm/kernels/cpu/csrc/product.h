// One block of 16 rows times one tile of tokens: the inner loops, written once for every instruction set.
#pragma once
#include "block.h"
#include "repeat.h"
#include "store.h"
#include "tile.h"

template <class L, int Bits>
struct Sums {
    // The integer sums of inputs [from, to), multiples of 8, are added to sum. Few tokens have a second chain
    // of sums, so that one need not wait for the other.
    template <int T>
    __attribute__((always_inline)) static inline void add(typename L::V (&sum)[T], const uint8_t* codes, const int8_t* a, int64_t from, int64_t to) {
        constexpr int chains = T <= 2 ? 2 : 1;
        constexpr int64_t inputs = Bits == 4 ? 8 : 4; // in 64 bytes of weights
        typename L::V part[chains][T];
        repeat<T>(MIXLLM_EACH(t) {
            part[0][t] = sum[t];
            if (chains == 2) part[chains - 1][t] = L::zero();
        });
        codes += from / inputs * 64;
        a += from * T;
        int64_t steps = (to - from) / inputs;
        int64_t s = 0;
        for (; s + chains <= steps; s += chains) {
            repeat<chains>(MIXLLM_EACH(c) {
                step<T>(part[c], codes, a);
                codes += 64;
                a += inputs * T;
            });
        }
        if (chains == 2 && s < steps) step<T>(part[0], codes, a);
        repeat<T>(MIXLLM_EACH(t) { sum[t] = chains == 2 ? L::add(part[0][t], part[chains - 1][t]) : part[0][t]; });
    }

    template <int T>
    __attribute__((always_inline)) static inline void step(typename L::V (&sum)[T], const uint8_t* codes, const int8_t* a) {
        __builtin_prefetch(codes + kAhead);
        typename L::Bytes w = L::bytes(codes);
        if (Bits == 4) {
            typename L::Bytes low = L::low(w), high = L::high(w);
            repeat<T>(MIXLLM_EACH(t) { sum[t] = L::dot4(sum[t], low, high, a + 4 * t, a + 4 * (T + t)); });
        } else {
            repeat<T>(MIXLLM_EACH(t) { sum[t] = L::dot8(sum[t], w, a + 4 * t); });
        }
    }
};

// What a group's unsigned codes summed up too much: its zero, 128 for 8-bit rows, times the sum of activations.
template <class L, int Bits>
inline typename L::V without_zero(typename L::V sum, const Block& b, int64_t g, int32_t codes_sum) {
    typename L::V zero = Bits == 4 ? L::widen(b.zeros + g * b.zero_step) : L::set(128);
    return L::subtract(sum, L::multiply(zero, L::set(codes_sum)));
}

// Formats with one float scale a row: integers throughout an activation group. y [T][16].
template <class L, int Bits, int T>
void product_by_row(const MixllmWeight& w, const Block& b, const Tile& tile, float* y) {
    const int64_t padded = padded_inputs(w.inputs);
    alignas(64) int32_t total[T][kRows];
    for (int i = 0; i < T * kRows; i++) y[i] = 0;
    int64_t group = 0;
    for (int64_t a = 0; a < w.inputs; a += w.activation_width, group++) {
        int64_t end = a + w.activation_width < w.inputs ? a + w.activation_width : padded;
        std::memset(total, 0, sizeof total);
        for (int64_t k = a; k < end; k += kGroup) {
            int64_t g = k / kGroup;
            typename L::V sum[T];
            repeat<T>(MIXLLM_EACH(t) { sum[t] = L::zero(); });
            Sums<L, Bits>::template add<T>(sum, b.codes, tile.codes, k, least(k + kGroup, end));
            repeat<T>(MIXLLM_EACH(t) {
                typename L::V part = without_zero<L, Bits>(sum[t], b, g, tile.sums[g * T + t]);
                if (Bits == 4) part = L::multiply(part, L::widen(b.factors + g * b.zero_step));
                L::store(total[t], L::add(L::load(total[t]), part));
            });
        }
        for (int t = 0; t < T; t++) {
            typename L::F scaled = L::multiply_float(
                L::to_float(L::load(total[t])), L::set_float(tile.scales[group * T + t]));
            L::store_float(y + kRows * t, L::add_float(L::load_float(y + kRows * t), scaled));
        }
    }
    for (int t = 0; t < T; t++) {
        typename L::F scaled = L::multiply_float(L::load_float(y + kRows * t), L::load_float(b.row_scales));
        L::store_float(y + kRows * t, scaled);
    }
}

// Formats with one float scale for 128 inputs of a row.
template <class L, int Bits, bool Half, int T>
void product_by_group(const MixllmWeight& w, const Block& b, const Tile& tile, float* y) {
    const int64_t padded = padded_inputs(w.inputs);
    for (int i = 0; i < T * kRows; i++) y[i] = 0;
    for (int64_t k = 0; k < padded; k += kGroup) {
        int64_t g = k / kGroup, group = k / w.activation_width;
        typename L::V sum[T];
        repeat<T>(MIXLLM_EACH(t) { sum[t] = L::zero(); });
        Sums<L, Bits>::template add<T>(sum, b.codes, tile.codes, k, least(k + kGroup, padded));
        typename L::F scale = Half ? L::load_half(static_cast<const uint16_t*>(b.scales) + kRows * g)
                                   : L::load_float(static_cast<const float*>(b.scales) + kRows * g);
        repeat<T>(MIXLLM_EACH(t) {
            typename L::V part = without_zero<L, Bits>(sum[t], b, g, tile.sums[g * T + t]);
            typename L::F scaled = L::multiply_float(
                L::multiply_float(L::to_float(part), scale), L::set_float(tile.scales[group * T + t]));
            L::store_float(y + kRows * t, L::add_float(L::load_float(y + kRows * t), scaled));
        });
    }
}

template <class L, int T>
void product_of_width(const MixllmWeight& w, int64_t block, const Tile& tile, float* y) {
    const Block b = block_of(w, block);
    if (b.kind == kRowScale)
        b.eight ? product_by_row<L, 8, T>(w, b, tile, y) : product_by_row<L, 4, T>(w, b, tile, y);
    else if (b.kind == kGroupHalf)
        b.eight ? product_by_group<L, 8, true, T>(w, b, tile, y) : product_by_group<L, 4, true, T>(w, b, tile, y);
    else
        b.eight ? product_by_group<L, 8, false, T>(w, b, tile, y) : product_by_group<L, 4, false, T>(w, b, tile, y);
}

// y [tile.width][16]: the block's outputs without bias.
template <class L>
void product(const MixllmWeight& w, int64_t block, const Tile& tile, float* y) {
    switch (tile.width) {
        case 1: return product_of_width<L, 1>(w, block, tile, y);
        case 2: return product_of_width<L, 2>(w, block, tile, y);
        case 4: return product_of_width<L, 4>(w, block, tile, y);
    }
    if constexpr (L::kMostTokens > 4) {
        switch (tile.width) {
            case 8: return product_of_width<L, 8>(w, block, tile, y);
            case 12: return product_of_width<L, 12>(w, block, tile, y);
            case 16: return product_of_width<L, 16>(w, block, tile, y);
            case 24: return product_of_width<L, 24>(w, block, tile, y);
        }
    }
}

template <class L>
void multiply(
    const MixllmWeight& w, const MixllmCall& call, int64_t first, int64_t blocks, const Tile* tiles, int64_t count) {
    alignas(64) float y[kMostTokens * kRows];
    for (int64_t block = first; block < first + blocks; block++)
        for (const Tile* tile = tiles; tile < tiles + count; tile++) {
            product<L>(w, block, *tile, y);
            store(w, call, block, 1, *tile, y);
        }
}
