// A linear layer: quantize a call's activations once, then multiply block by block and put rows where they belong.
#include <algorithm>
#include <cstdlib>
#include <memory>
#include <vector>

#include "isa.h"
#include "threads.h"

namespace {

// No more tokens than this read a weight from memory slower than they multiply it: small pieces of work are better.
constexpr int64_t kFewTokens = 64;
// Inputs that are worth a second thread.
constexpr int64_t kWorthThreads = 16384;

struct Freed {
    void operator()(void* p) const { std::free(p); }
};
typedef std::unique_ptr<uint8_t, Freed> Room;

int64_t room_for_codes(int64_t inputs) { return ceil_div(inputs, kLongestRun) * kLongestRun; }

Room room_of(int64_t bytes) {
    void* p = nullptr;
    return Room(posix_memalign(&p, 64, size_t(bytes)) == 0 ? static_cast<uint8_t*>(p) : nullptr);
}

// Tiles for tokens [first, first + count); the buffers have room for kChunk tokens.
std::vector<Tile> tiles_of(
    const MixllmWeight& w, const Isa& isa, int64_t first, int64_t count, int8_t* codes, int32_t* sums, float* scales) {
    std::vector<Tile> tiles;
    for (int64_t done = 0; done < count;) {
        Tile tile{codes, sums, scales, first + done, tile_width(count - done, isa.widths), 0};
        tile.tokens = int(least(tile.width, count - done));
        codes += room_for_codes(w.inputs) * tile.width;
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

    // Blocks of rows are multiplied several at once where there are enough for every thread.
    const int64_t blocks = w.blocks4 + w.blocks8;
    const int64_t most = tokens > kFewTokens ? isa.most_blocks : least(isa.most_blocks, 2);
    const int64_t step = std::max<int64_t>(1, least(most, blocks / (4 * thread_count())));
    auto multiply = [&](int64_t i) {
        isa.multiply(w, call, i * step, least(step, blocks - i * step), tiles.data(), int64_t(tiles.size()));
    };
    // An 8-bit block has twice the bytes and the work of a 4-bit one.
    auto end_of = [&](int64_t share, int64_t shares) {
        const int64_t cost = (w.blocks4 + 2 * w.blocks8) * (share + 1) / shares;
        return ceil_div(cost <= w.blocks4 ? cost : w.blocks4 + (cost - w.blocks4) / 2, step);
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
    const Isa* asked = isa_at(call->isa);
    const Isa& isa = asked->for_few && call->tokens <= asked->few_tokens ? *asked->for_few : *asked;
    const int64_t room = least(call->tokens, kChunk) + kMostTokens;
    const int64_t codes = room_for_codes(w->inputs) * room, sums = 4 * ceil_div(w->inputs, kGroup) * room;
    const int64_t scales = 4 * ceil_div(w->inputs, w->activation_width) * room;
    Room memory = room_of(codes + sums + scales);
    if (!memory) return 1;
    int8_t* at = reinterpret_cast<int8_t*>(memory.get());
    for (int64_t first = 0; first < call->tokens; first += kChunk) {
        const int64_t count = least(kChunk, call->tokens - first);
        run_chunk(*w, *call, isa,
                  tiles_of(*w, isa, first, count, at, reinterpret_cast<int32_t*>(at + codes),
                           reinterpret_cast<float*>(at + codes + sums)));
    }
    return 0;
}
}
