// A linear layer that is not quantized, such as a model's head, for a few tokens.
#include <vector>

#include "isa.h"
#include "dense.h"
#include "threads.h"

namespace {
// Rows in a piece of work.
constexpr int64_t kStep = 64;
} // namespace

extern "C" __attribute__((visibility("default"))) void mixllm_dense(const MixllmDense* d) {
    const int64_t pitch = dense_inputs(d->inputs);
    std::vector<float> x(size_t(d->tokens * pitch));
    with_type(d->type, [&](auto element) {
        typedef decltype(element) E;
        const auto* from = static_cast<const typename E::Stored*>(d->x);
        for (int64_t t = 0; t < d->tokens; t++) arrange<E>(from + t * d->inputs, d->inputs, &x[size_t(t * pitch)]);
    });
    in_parallel(ceil_div(d->outputs, kStep), [&](int64_t i) {
        isa_at(d->isa)->dense(*d, x.data(), i * kStep, least(kStep, d->outputs - i * kStep));
    });
}
