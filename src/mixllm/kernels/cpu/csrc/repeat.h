// Loops that are unrolled whole.
#pragma once

// f(0), f(1) .. f(N - 1), unrolled whole in every compiler: only so do an array's elements stay in registers.
template <int N, class Function>
__attribute__((always_inline)) inline void repeat(const Function& f) {
    if constexpr (N > 0) {
        repeat<N - 1>(f);
        f(N - 1);
    }
}
#define MIXLLM_EACH(i) [&](int i) __attribute__((always_inline))
