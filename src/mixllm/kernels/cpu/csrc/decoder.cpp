// A few tokens through a decoder's blocks: what the model's own code computes, step by step, in one call.
#include "decoder.h"

#include <vector>

#include "linear.h"
#include "norm.h"
#include "threads.h"

namespace {

// Products of one query with keys and values that are worth a second thread.
constexpr int64_t kWorthThreads = 1 << 17;

// Everything between the layers is float32 with a value of type E in it, or not yet rounded to one.
template <class E>
struct Decoder {
    typedef typename E::Stored Stored;

    const MixllmStep& step;
    const Isa& isa;
    const int64_t hidden = step.blocks[0].query.weight->inputs, inner = step.blocks[0].gate.weight->outputs;
    const int64_t queries = step.heads * step.head, kept = step.kv_heads * step.head;
    std::vector<float> x = floats(hidden), normed = x, q = floats(queries), k = floats(kept), v = k, mixed = q;
    std::vector<float> gate = floats(inner), up = gate;

    std::vector<float> floats(int64_t of_a_token) const { return std::vector<float>(size_t(step.tokens * of_a_token)); }

    bool linears(const std::vector<float>& from, std::initializer_list<const MixllmProjection*> layers,
                 std::initializer_list<std::vector<float>*> to) {
        const MixllmWeight* weights[3];
        MixllmCall calls[3];
        int count = 0;
        for (const MixllmProjection* layer : layers) {
            weights[count] = layer->weight;
            calls[count] = {from.data(), to.begin()[count]->data(), layer->bias, step.tokens, layer->weight->inputs,
                            kFloat32, step.isa};
            count++;
        }
        return run_linears(isa, weights, calls, count);
    }

    void norm_tokens(const MixllmNorm& norm) {
        for (int64_t t = 0; t < step.tokens; t++)
            rms_norm<E>(&x[size_t(t * hidden)], static_cast<const Stored*>(norm.weight), hidden, norm.eps,
                        &normed[size_t(t * hidden)]);
    }

    void add_to_x(const std::vector<float>& part) {
        for (size_t i = 0; i < x.size(); i++) x[i] = rounded<E>(x[i] + rounded<E>(part[i]));
    }

    // A token's heads as attention takes them.
    void place(float* heads, int64_t count, const MixllmNorm& norm, int64_t t) {
        const int64_t head = step.head;
        for (float* one = heads; one < heads + count * head; one += head) {
            for (int64_t i = 0; i < head; i++) one[i] = rounded<E>(one[i]);
            if (norm.weight) rms_norm<E>(one, static_cast<const Stored*>(norm.weight), head, norm.eps, one);
            turn<E>(one, static_cast<const Stored*>(step.cos) + t * head,
                    static_cast<const Stored*>(step.sin) + t * head, head);
        }
    }

    // A token's keys or values behind those that are kept.
    void keep(const float* heads, void* all, int64_t t) {
        const int64_t head = step.head;
        for (int64_t h = 0; h < step.kv_heads; h++) {
            Stored* to = static_cast<Stored*>(all) + (h * step.room + step.past + t) * head;
            for (int64_t i = 0; i < head; i++) to[i] = E::put(heads[h * head + i]);
        }
    }

    void attention(const MixllmBlock& b) {
        const int64_t head = step.head, group = step.heads / step.kv_heads;
        auto one = [&](int64_t i) {
            static thread_local std::vector<float> p;
            const int64_t t = i / step.heads, count = step.past + t + 1;
            const int64_t from = i % step.heads / group * step.room * head;
            if (int64_t(p.size()) < count + 16) p.resize(size_t(count + 1024));
            float* out = &mixed[size_t(i * head)];
            isa.attend(&q[size_t(i * head)], static_cast<const Stored*>(b.keys) + from,
                       static_cast<const Stored*>(b.values) + from, count, head, b.scaling, step.type, p.data(), out);
            for (int64_t d = 0; d < head; d++) out[d] = rounded<E>(out[d]);
        };
        const int64_t work = step.tokens * step.heads;
        if (work * head * step.past >= kWorthThreads)
            in_parallel(work, one);
        else
            for (int64_t i = 0; i < work; i++) one(i);
    }

    bool run(const MixllmBlock& b) {
        norm_tokens(b.norm);
        if (!linears(normed, {&b.query, &b.key, &b.value}, {&q, &k, &v})) return false;
        for (int64_t t = 0; t < step.tokens; t++) {
            place(&q[size_t(t * queries)], step.heads, b.query_norm, t);
            place(&k[size_t(t * kept)], step.kv_heads, b.key_norm, t);
            keep(&k[size_t(t * kept)], b.keys, t);
            keep(&v[size_t(t * kept)], b.values, t);
        }
        attention(b);
        if (!linears(mixed, {&b.output}, {&normed})) return false;
        add_to_x(normed);
        norm_tokens(b.after);
        if (!linears(normed, {&b.gate, &b.up}, {&gate, &up})) return false;
        isa.gated(gate.data(), up.data(), int64_t(gate.size()), step.type);
        if (!linears(gate, {&b.down}, {&normed})) return false;
        add_to_x(normed);
        return true;
    }

    bool run() {
        for (size_t i = 0; i < x.size(); i++) x[i] = E::get(static_cast<const Stored*>(step.x)[i]);
        for (int64_t b = 0; b < step.count; b++)
            if (!run(step.blocks[b])) return false;
        if (step.norm.weight) norm_tokens(step.norm);
        const std::vector<float>& y = step.norm.weight ? normed : x;
        for (size_t i = 0; i < y.size(); i++) static_cast<Stored*>(step.y)[i] = E::put(y[i]);
        return true;
    }
};

} // namespace

// 0, or 1 where there was no memory.
extern "C" __attribute__((visibility("default"))) int32_t mixllm_decode(const MixllmStep* step) {
    bool done = false;
    with_type(step->type, [&](auto element) {
        Decoder<decltype(element)> decoder{*step, *isa_at(step->isa)};
        with_crew([&] { done = decoder.run(); });
    });
    return done ? 0 : 1;
}
