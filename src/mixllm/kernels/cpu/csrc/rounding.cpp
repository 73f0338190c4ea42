// Steps of rounding: strips of rows, which are independent, in parallel.
#include "isa.h"
#include "threads.h"

namespace {
template <class Work>
void by_strips(const Work& work, void (*strip)(const Work&, int64_t first, int64_t count)) {
    in_parallel(ceil_div(work.rows, kStrip), [&](int64_t i) {
        strip(work, i * kStrip, least(kStrip, work.rows - i * kStrip));
    });
}
} // namespace

extern "C" __attribute__((visibility("default"))) void mixllm_best_grid(const MixllmClip* c) {
    by_strips(*c, isa_at(c->isa)->best_grid);
}

extern "C" __attribute__((visibility("default"))) void mixllm_round_columns(const MixllmColumns* c) {
    by_strips(*c, isa_at(c->isa)->round_columns);
}

extern "C" __attribute__((visibility("default"))) void mixllm_rotate(const MixllmRotation* r) {
    const Isa& isa = *isa_at(r->isa);
    in_parallel(ceil_div(r->rows, kStrip), [&](int64_t i) {
        for (int64_t row = i * kStrip; row < least((i + 1) * kStrip, r->rows); row++)
            isa.rotate(r->x + row * r->inputs, r->inputs);
    });
}
