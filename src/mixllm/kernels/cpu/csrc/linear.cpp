// A linear layer: quantize a call's activations once, then multiply block by block and put rows where they belong.
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "element.h"
#include "isa.h"
#include "threads.h"

namespace {

// Tokens that are quantized before they are multiplied: what they take stays in the caches.
constexpr int64_t kChunk = 384;
// Inputs that are worth a second thread.
constexpr int64_t kWorthThreads = 16384;

struct Freed {
    void operator()(void* p) const { std::free(p); }
};
typedef std::unique_ptr<uint8_t, Freed> Room;

Room room_of(int64_t bytes) {
    void* p = nullptr;
    return Room(posix_memalign(&p, 64, size_t(bytes)) == 0 ? static_cast<uint8_t*>(p) : nullptr);
}

void store(const MixllmWeight& w, const MixllmCall& call, int64_t block, const Tile& tile, const float* y) {
    const int32_t* channels = w.channels + block * kRows;
    for (int t = 0; t < tile.tokens; t++, y += kRows) {
        const int64_t row = (tile.first + t) * w.outputs;
        for (int i = 0; i < kRows; i++) {
            const int32_t channel = channels[i];
            if (channel < 0) continue;
            const float value = call.bias ? y[i] + call.bias[channel] : y[i];
            if (call.type == kFloat32)
                static_cast<float*>(call.y)[row + channel] = value;
            else
                static_cast<uint16_t*>(call.y)[row + channel] =
                    call.type == kBFloat16 ? to_bfloat16(value) : to_float16(value);
        }
    }
}

// Tiles for tokens [first, first + count); the buffers have room for kChunk tokens.
std::vector<Tile> tiles_of(
    const MixllmWeight& w, int most, int64_t first, int64_t count, int8_t* codes, int32_t* sums, float* scales) {
    std::vector<Tile> tiles;
    for (int64_t done = 0; done < count;) {
        Tile tile{codes, sums, scales, first + done, tile_width(count - done, most), 0};
        tile.tokens = int(least(tile.width, count - done));
        codes += padded_inputs(w.inputs) * tile.width;
        sums += ceil_div(w.inputs, kGroup) * tile.width;
        scales += ceil_div(w.inputs, w.activation_width) * tile.width;
        done += tile.tokens;
        tiles.push_back(tile);
    }
    return tiles;
}

void run_chunk(const MixllmWeight& w, const MixllmCall& call, const Isa& isa, const std::vector<Tile>& tiles) {
    const int64_t padded = padded_inputs(w.inputs);
    int64_t tokens = 0;
    for (const Tile& tile : tiles) {
        for (int t = tile.tokens; t < tile.width; t++) isa.clear(w, tile, t);
        tokens += tile.tokens;
    }
    auto quantize = [&](int64_t token) {
        static thread_local std::vector<float> room;
        if (int64_t(room.size()) < padded) room.resize(size_t(padded));
        const Tile& tile = tiles[size_t(token / tiles[0].width)];
        isa.quantize(w, call, tile, int(token % tiles[0].width), room.data());
    };
    if (tokens > 1 && tokens * w.inputs >= kWorthThreads)
        in_parallel(tokens, quantize);
    else
        for (int64_t token = 0; token < tokens; token++) quantize(token);

    auto multiply = [&](int64_t block) {
        alignas(64) float y[kMostTokens * kRows];
        for (const Tile& tile : tiles) {
            isa.product(w, block, tile, y);
            store(w, call, block, tile, y);
        }
    };
    // An 8-bit block has twice the bytes and the work of a 4-bit one.
    auto end_of = [&](int64_t share, int64_t shares) {
        const int64_t cost = (w.blocks4 + 2 * w.blocks8) * (share + 1) / shares;
        return cost <= w.blocks4 ? cost : w.blocks4 + (cost - w.blocks4) / 2;
    };
    in_parallel(end_of, multiply);
}

} // namespace

extern "C" {

__attribute__((visibility("default"))) const char* mixllm_isa_name(int32_t index) {
    const Isa* isa = isa_at(index);
    return isa ? isa->name : nullptr;
}

__attribute__((visibility("default"))) void mixllm_use_threads(ParallelFor run, ThreadCount count) {
    torch_parallel_for = run;
    torch_thread_count = count;
}

// 0, or 1 where there was no memory.
__attribute__((visibility("default"))) int32_t mixllm_linear(const MixllmWeight* w, const MixllmCall* call) {
    const Isa& isa = *isa_at(call->isa);
    const int64_t room = least(call->tokens, kChunk) + isa.most_tokens;
    const int64_t codes = padded_inputs(w->inputs) * room, sums = 4 * ceil_div(w->inputs, kGroup) * room;
    const int64_t scales = 4 * ceil_div(w->inputs, w->activation_width) * room;
    Room memory = room_of(codes + sums + scales);
    if (!memory) return 1;
    int8_t* at = reinterpret_cast<int8_t*>(memory.get());
    for (int64_t first = 0; first < call->tokens; first += kChunk) {
        const int64_t count = least(kChunk, call->tokens - first);
        run_chunk(*w, *call, isa,
                  tiles_of(*w, isa.most_tokens, first, count, at, reinterpret_cast<int32_t*>(at + codes),
                           reinterpret_cast<float*>(at + codes + sums)));
    }
    return 0;
}
}
