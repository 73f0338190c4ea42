// A linear layer: quantize a call's activations once, then multiply block by block and put rows where they belong.
#include <algorithm>
#include <cstdlib>
#include <memory>
#include <vector>

#include "linear.h"
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

// Pieces of work that one weight is divided into, `step` blocks of rows each.
struct Part {
    const MixllmWeight* weight;
    const MixllmCall* call;
    int64_t step, pieces;

    Part(const MixllmWeight& w, const MixllmCall& call, const Isa& isa, int64_t tokens)
        : weight(&w), call(&call) {
        // Blocks of rows are multiplied several at once where there are enough for every thread.
        const int64_t most = tokens > kFewTokens ? isa.most_blocks : least(isa.most_blocks, 2);
        step = std::max<int64_t>(1, least(most, blocks() / (4 * thread_count())));
        pieces = ceil_div(blocks(), step);
    }
    int64_t blocks() const { return weight->blocks4 + weight->blocks8; }
    // An 8-bit block has twice the bytes and the work of a 4-bit one.
    int64_t cost() const { return weight->blocks4 + 2 * weight->blocks8; }
    // How many pieces cost as much.
    int64_t pieces_of(int64_t cost) const {
        return ceil_div(cost <= weight->blocks4 ? cost : weight->blocks4 + (cost - weight->blocks4) / 2, step);
    }
};

void quantize_all(const MixllmWeight& w, const MixllmCall& call, const Isa& isa, const std::vector<Tile>& tiles) {
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
}

void multiply_all(const std::vector<Part>& parts, const Isa& isa, const std::vector<Tile>& tiles) {
    auto multiply = [&](int64_t i) {
        const Part* part = parts.data();
        for (; i >= part->pieces; part++) i -= part->pieces;
        isa.multiply(*part->weight, *part->call, i * part->step, least(part->step, part->blocks() - i * part->step),
                     tiles.data(), int64_t(tiles.size()));
    };
    int64_t total = 0;
    for (const Part& part : parts) total += part.cost();
    auto end_of = [&](int64_t share, int64_t shares) {
        int64_t cost = total * (share + 1) / shares, pieces = 0;
        for (const Part& part : parts) {
            pieces += part.pieces_of(least(cost, part.cost()));
            cost -= least(cost, part.cost());
        }
        return pieces;
    };
    in_parallel(end_of, multiply);
}

} // namespace

bool run_linears(const Isa& asked, const MixllmWeight* const* weights, const MixllmCall* calls, int count) {
    const MixllmWeight& w = *weights[0];
    const int64_t tokens = calls[0].tokens;
    const Isa& isa = asked.for_few && tokens <= asked.few_tokens ? *asked.for_few : asked;
    const int64_t room = least(tokens, kChunk) + kMostTokens;
    const int64_t codes = room_for_codes(w.inputs) * room, sums = 4 * ceil_div(w.inputs, kGroup) * room;
    const int64_t scales = 4 * ceil_div(w.inputs, w.activation_width) * room;
    Room memory = room_of(codes + sums + scales);
    if (!memory) return false;
    int8_t* at = reinterpret_cast<int8_t*>(memory.get());
    for (int64_t first = 0; first < tokens; first += kChunk) {
        const int64_t chunk = least(kChunk, tokens - first);
        const std::vector<Tile> tiles = tiles_of(w, isa, first, chunk, at, reinterpret_cast<int32_t*>(at + codes),
                                                 reinterpret_cast<float*>(at + codes + sums));
        std::vector<Part> parts;
        for (int i = 0; i < count; i++) parts.emplace_back(*weights[i], calls[i], isa, chunk);
        quantize_all(w, calls[0], isa, tiles);
        multiply_all(parts, isa, tiles);
    }
    return true;
}

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
    return run_linears(*isa_at(call->isa), &w, call, 1) ? 0 : 1;
}
}
