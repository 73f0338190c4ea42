// Every instruction set of this machine against portable C++, bit for bit, with neither Python nor torch: for
// processors that there is only an emulator of. Prints the sets that it compared; exit status 1 where two differ.
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "decoder.h"
#include "fixed_call.h"
#include "rounding.h"

extern "C" {
const char* mixllm_isa_name(int32_t index);
int32_t mixllm_linear(const MixllmWeight* weight, const MixllmCall* call);
int32_t mixllm_decode(const MixllmStep* step);
void mixllm_dense(const MixllmDense* dense);
void mixllm_best_grid(const MixllmClip* clip);
void mixllm_round_columns(const MixllmColumns* columns);
void mixllm_fixed_rows(const MixllmFixedRows* rows);
void mixllm_fixed(const MixllmFixed* product);
}

namespace {
std::mt19937 generator(1);

template <class T>
std::vector<T> random(int64_t count, int lowest, int highest) {
    std::vector<T> values(static_cast<size_t>(count));
    for (T& value : values) value = T(lowest + int(generator() % unsigned(highest - lowest + 1)));
    return values;
}

// A weight in the kernels' order; multipliers keep m (q - z) an int8.
struct Layer {
    std::vector<uint8_t> codes4, codes8, zeros, factors;
    std::vector<uint16_t> halves;
    std::vector<float> floats, row_scales;
    std::vector<int32_t> channels;
    MixllmWeight weight;

    Layer(int64_t rows4, int64_t rows8, int64_t inputs, ScaleKind kind, bool grouped, int64_t width, bool rotate) {
        const int64_t blocks4 = ceil_div(rows4, kRows), blocks8 = ceil_div(rows8, kRows);
        const int64_t padded = padded_inputs(inputs), groups = ceil_div(inputs, kGroup);
        const int64_t zero_groups = grouped ? groups : 1, all = kRows * (blocks4 + blocks8);
        codes4 = random<uint8_t>(blocks4 * kRows * padded / 2, 0, 255);
        codes8 = random<uint8_t>(blocks8 * kRows * padded, 1, 255);
        zeros = random<uint8_t>(blocks4 * zero_groups * kRows, 0, 15);
        factors = random<uint8_t>(blocks4 * zero_groups * kRows, 1, kind == kRowScale && grouped ? 8 : 1);
        halves = random<uint16_t>(all * groups, 0x2000, 0x3C00); // 0.008 to 1
        for (int half : random<int>(all * groups, 1, 1000)) floats.push_back(float(half) / 1000);
        row_scales = floats;
        for (int64_t i = 0, channel = rows4 + rows8; i < all; i++) {
            const bool there = i < kRows * blocks4 ? i < rows4 : i - kRows * blocks4 < rows8;
            channels.push_back(there ? int32_t(--channel) : -1);
        }
        const void* scales = kind == kGroupHalf ? static_cast<const void*>(halves.data()) : floats.data();
        weight = {codes4.data(), codes8.data(), zeros.data(), factors.data(), scales, scales, row_scales.data(),
                  channels.data(), inputs, rows4 + rows8, blocks4, blocks8, zero_groups, width, kind, kind, rotate};
    }
};

std::vector<uint32_t> outputs(const Layer& layer, const std::vector<uint32_t>& x, int64_t tokens, int32_t type, int32_t isa) {
    const int64_t n = layer.weight.outputs, canary = 7;
    std::vector<uint32_t> y(static_cast<size_t>(tokens * n + canary), 0xABCDABCD);
    const MixllmCall call{x.data(), y.data(), nullptr, tokens, layer.weight.inputs, type, isa};
    if (mixllm_linear(&layer.weight, &call) != 0) y.clear();
    for (int64_t i = 0; i < canary; i++)
        if (y[size_t(tokens * n + i)] != 0xABCDABCD) y.clear();
    return y;
}

// Inputs of about the size of 1, as float32 or as two 16-bit floats a word.
std::vector<uint32_t> inputs(int64_t count, int32_t type) {
    std::vector<uint32_t> words;
    for (uint32_t bits : random<uint32_t>(count, 0, 0x7FFFFF)) {
        const uint32_t one = type == kFloat16 ? 0x3800 + (bits & 0x87FF) : 0x3F00 + (bits & 0x80FF);
        words.push_back(type == kFloat32 ? 0x3F000000 + bits : one << 16 | one);
    }
    return words;
}

// A step through one block with `head` channels a head, and what it writes in the cache.
std::vector<uint32_t> step(const std::vector<Layer>& layers, int64_t head, int64_t tokens, int32_t type, int32_t isa) {
    constexpr int64_t past = 37, room = 64, hidden = 200;
    generator.seed(7);
    const std::vector<uint32_t> x = inputs(tokens * hidden, type), norm = inputs(hidden, type);
    const std::vector<uint32_t> turns = inputs(tokens * head, type);
    std::vector<uint32_t> keys = inputs(2 * room * head, type), values = inputs(2 * room * head, type);
    std::vector<uint32_t> y(size_t(tokens * hidden));
    MixllmProjection all[7];
    for (int i = 0; i < 7; i++) all[i] = {&layers[size_t(i)].weight, nullptr};
    const MixllmNorm norms{norm.data(), 1e-5f};
    const MixllmBlock block{all[0], all[1], all[2], all[3], all[4], all[5], all[6], norms, norms, norms, norms,
                            keys.data(), values.data(), 0.2f};
    const MixllmStep s{&block, 1, norms, x.data(), y.data(), turns.data(), turns.data(), tokens, past, room, 4, 2, head,
                       type, isa};
    if (mixllm_decode(&s) != 0) return {};
    y.insert(y.end(), keys.begin(), keys.end());
    y.insert(y.end(), values.begin(), values.end());
    return y;
}

std::vector<uint32_t> dense(int64_t inputs_count, int64_t tokens, int32_t type, int32_t isa) {
    generator.seed(7);
    const std::vector<uint32_t> x = inputs(tokens * inputs_count, type), weight = inputs(45 * inputs_count, type);
    std::vector<uint32_t> y(size_t(tokens * 45));
    const MixllmDense d{x.data(), weight.data(), y.data(), tokens, inputs_count, 45, type, isa};
    mixllm_dense(&d);
    return y;
}

// Whether steps and dense products agree with the portable ones.
bool decoding_agrees(int32_t isa, int32_t portable) {
    for (const int64_t head : {22, 64, 86}) {
        const int64_t sizes[7][2] = {{4 * head, 200}, {2 * head, 200}, {2 * head, 200}, {200, 4 * head},
                                     {131, 200},      {131, 200},      {200, 131}};
        std::vector<Layer> layers;
        for (const auto& size : sizes) layers.emplace_back(size[0] - 20, 20, size[1], kRowScale, true, size[1], true);
        for (int32_t type = 0; type < 3; type++)
            for (const int64_t tokens : {1, 2, 7})
                if (step(layers, head, tokens, type, isa) != step(layers, head, tokens, type, portable) ||
                    dense(5 * head, tokens, type, isa) != dense(5 * head, tokens, type, portable))
                    return false;
    }
    return true;
}

// The grids of 41 rows of 4 and 8 bits in a group of 89 inputs, and what rounding by them gives.
std::vector<float> rounding(int32_t group_floats, int32_t isa) {
    constexpr int64_t rows = 41, length = 89, steps = 11;
    generator.seed(7);
    std::vector<float> w, importance, shrinks, by_row, upper, fields(5 * rows), out(2 * length * rows);
    for (int value : random<int>(length * rows, -1000, 1000)) w.push_back(float(value) / 1000);
    for (int value : random<int>(length, 1, 1000)) importance.push_back(float(value) / 1000);
    for (int64_t step = 0; step < steps; step++) shrinks.push_back(1 - 0.02f * float(step));
    for (int64_t r = 0; r < rows; r++) by_row.push_back(r % 3 ? 15.0f : 127.0f);
    for (int64_t r = 0; r < rows; r++) by_row.push_back(r % 3 ? 16.0f : 1.0f);
    for (int64_t r = 0; r < rows; r++) by_row.push_back(r % 3 ? 1 / 119.0f : 1 / 127.0f);
    for (int value : random<int>(length * length, -1000, 1000)) upper.push_back(float(value) / 10000);
    for (int64_t j = 0; j < length; j++) upper[size_t(j * (length + 1))] = 1.5f;
    const MixllmClip clip{w.data(), importance.data(), shrinks.data(), by_row.data(), fields.data(), length, rows,
                          steps, group_floats, isa};
    mixllm_best_grid(&clip);
    const float* found = fields.data();
    const MixllmColumns columns{w.data(), nullptr, found, found + rows, found + 2 * rows, found + 3 * rows,
                                upper.data(), out.data(), out.data() + length * rows, length, rows, length, isa};
    mixllm_round_columns(&columns);
    out.insert(out.end(), fields.begin(), fields.end());
    return out;
}

// A product in fixed point, and its sums by windows.
std::vector<float> fixed(int64_t count, int32_t isa) {
    constexpr int64_t rows = 45, tokens = 34, blocks = 4;
    generator.seed(7);
    std::vector<float> x, w, delta, scales(16 * blocks), out(tokens * rows + 4 * rows);
    for (int value : random<int>(tokens * count, -1000, 1000)) x.push_back(float(value) / 1000);
    for (int value : random<int>(rows * count, -1000, 1000)) w.push_back(float(value) / 1000);
    for (int value : random<int>(tokens * 15, -1000, 1000)) delta.push_back(float(value) / 1000);
    std::vector<int16_t> codes(size_t(blocks * 16 * 2 * ceil_div(count, 2)));
    const MixllmFixedRows packed{w.data(), codes.data(), scales.data(), rows, count, count, blocks, isa};
    mixllm_fixed_rows(&packed);
    float* sums = out.data() + tokens * rows;
    MixllmFixed f{x.data(), codes.data(), scales.data(), out.data(), nullptr, sums, sums + 2 * rows,
                  tokens, count, count, rows, blocks, 17, 15, isa};
    mixllm_fixed(&f);
    f.delta = delta.data();
    mixllm_fixed(&f);
    return out;
}
} // namespace

int main() {
    std::vector<std::string> names;
    while (const char* name = mixllm_isa_name(int32_t(names.size()))) names.push_back(name);
    const int32_t portable = int32_t(names.size()) - 1;
    struct {
        ScaleKind kind;
        bool grouped;
    } const scales[] = {{kRowScale, true}, {kRowScale, false}, {kGroupHalf, true}, {kGroupFloat, true}};
    int compared = 0;
    for (const auto& scale : scales)
        for (const int64_t k : {31, 200, 576, 1100})
            for (const int64_t width : {int64_t(128), int64_t(512), k})
                for (const int64_t tokens : {1, 2, 3, 5, 14, 33}) {
                    const Layer layer(37, 19, k, scale.kind, scale.grouped, width, tokens % 2);
                    const int32_t type = int32_t(tokens % 3);
                    const std::vector<uint32_t> x = inputs(tokens * k, type);
                    const std::vector<uint32_t> expected = outputs(layer, x, tokens, type, portable);
                    for (int32_t isa = 0; isa < portable; isa++, compared++)
                        if (expected.empty() || outputs(layer, x, tokens, type, isa) != expected) {
                            std::printf("%s differs: scale kind %d, K %d, activation width %d, %d tokens\n",
                                        names[size_t(isa)].c_str(), scale.kind, int(k), int(width), int(tokens));
                            return 1;
                        }
                }
    for (int32_t isa = 0; isa < portable; isa++)
        if (!decoding_agrees(isa, portable)) {
            std::printf("%s differs in decoding\n", names[size_t(isa)].c_str());
            return 1;
        }
    for (int32_t isa = 0; isa < portable; isa++)
        for (int32_t group_floats = 0; group_floats < 2; group_floats++)
            if (rounding(group_floats, isa) != rounding(group_floats, portable)) {
                std::printf("%s differs in rounding\n", names[size_t(isa)].c_str());
                return 1;
            }
    for (int32_t isa = 0; isa < portable; isa++)
        for (const int64_t count : {1, 33, 200})
            if (fixed(count, isa) != fixed(count, portable)) {
                std::printf("%s differs in fixed point\n", names[size_t(isa)].c_str());
                return 1;
            }
    for (const std::string& name : names) std::printf("%s ", name.c_str());
    std::printf("agree in %d cases\n", compared);
    return compared == 0;
}
