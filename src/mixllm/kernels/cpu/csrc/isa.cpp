// Which instruction sets the machine has, asked once.
#include "isa.h"

#if defined(__linux__) && defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace {
struct Found {
    const Isa* sets[4] = {};
    int count = 0;

    void add(const Isa& isa, bool present) {
        if (present) sets[count++] = &isa;
    }

    Found() {
#if defined(__x86_64__)
        __builtin_cpu_init();
        add(kAvx512Isa, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                            __builtin_cpu_supports("avx512vnni"));
        // Every machine with AVX2 converts float16 too.
        add(kAvx2Isa, __builtin_cpu_supports("avx2"));
#elif defined(__APPLE__) && defined(__aarch64__)
        add(kNeonIsa, true); // all of Apple's have the dot product
#elif defined(__linux__) && defined(__aarch64__)
        add(kNeonIsa, getauxval(AT_HWCAP) & HWCAP_ASIMDDP);
#endif
        add(kPortableIsa, true);
    }
};
} // namespace

const Isa* isa_at(int32_t index) {
    static const Found found;
    return index >= 0 && index < found.count ? found.sets[index] : nullptr;
}
