// Products of float32 matrices in 16-bit fixed point: rows once, then tokens a chunk at a time.
#include "fixed_call.h"

#include <memory>
#include <vector>

#include "isa.h"
#include "threads.h"

namespace {
// Tokens whose integers stay in a core's second cache while all rows go by.
constexpr int64_t kTokensAtOnce = 32 * kFixedTokens;
} // namespace

extern "C" __attribute__((visibility("default"))) void mixllm_fixed_rows(const MixllmFixedRows* f) {
    in_parallel(f->blocks, [&](int64_t i) { isa_at(f->isa)->fixed_rows(*f, i); });
}

extern "C" __attribute__((visibility("default"))) void mixllm_fixed(const MixllmFixed* f) {
    const Isa& isa = *isa_at(f->isa);
    const int64_t size = ceil_div(f->inputs, 2) * 2 * kFixedTokens;
    const int64_t most = ceil_div(least(f->tokens, kTokensAtOnce), kFixedTokens);
    std::unique_ptr<int16_t[]> codes(new int16_t[size_t(size * most)]);
    std::vector<float> scales(size_t(most * kFixedTokens));
    for (int64_t start = 0; start < f->tokens; start += kTokensAtOnce) {
        const int64_t chunk = least(kTokensAtOnce, f->tokens - start);
        std::vector<FixedTile> tiles;
        for (int64_t done = 0; done < chunk; done += kFixedTokens) {
            const int64_t i = int64_t(tiles.size());
            const int tokens = int(least(kFixedTokens, chunk - done));
            tiles.push_back({codes.get() + i * size, scales.data() + i * kFixedTokens, start + done, tokens});
        }
        in_parallel(int64_t(tiles.size()), [&](int64_t i) { isa.fixed_tokens(*f, tiles[size_t(i)]); });
        in_parallel(f->blocks / kFixedBlocks, [&](int64_t i) {
            isa.fixed_product(*f, i * kFixedBlocks, tiles.data(), int64_t(tiles.size()));
        });
    }
}
