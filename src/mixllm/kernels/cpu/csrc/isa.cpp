// Which instruction sets the machine has, asked once.
#include "isa.h"

#if defined(__linux__) && defined(__aarch64__)
#include <sys/auxv.h>
#endif
#if defined(__APPLE__)
#include <sys/sysctl.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(MIXLLM_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {
#if defined(__x86_64__)
struct Leaf7 {
    unsigned a = 0, b = 0, c = 0, d = 0;

    explicit Leaf7(unsigned part) { __get_cpuid_count(7, part, &a, &b, &c, &d); }
};
#endif

#if defined(MIXLLM_EMULATE_AMX)
bool has_amx() { return true; }
#elif defined(MIXLLM_AMX)
// Linux gives a process the tile registers, 8 KB more in every thread's saved state, only when it asks.
bool has_amx() {
    constexpr unsigned tile = 1 << 24, int8 = 1 << 25;
    constexpr long request = 0x1023, tile_data = 18; // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    const unsigned has = Leaf7(0).d;
    return has & tile && has & int8 && syscall(SYS_arch_prctl, request, tile_data) == 0;
}
#endif

struct Found {
    const Isa* sets[5] = {};
    int count = 0;

    void add(const Isa& isa, bool present) {
        if (present) sets[count++] = &isa;
    }

    Found() {
#if defined(__x86_64__)
        __builtin_cpu_init();
        const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                            __builtin_cpu_supports("avx512vnni");
#if defined(MIXLLM_AMX)
        add(kAmxIsa, avx512 && has_amx());
#endif
        add(kAvx512Isa, avx512);
        add(kAvxVnniIsa, __builtin_cpu_supports("avx2") && Leaf7(1).a & 1 << 4);
        // Every machine with AVX2 converts float16 too.
        add(kAvx2Isa, __builtin_cpu_supports("avx2"));
#elif defined(__APPLE__) && defined(__aarch64__)
        int has = 0;
        size_t size = sizeof has;
        add(kI8mmIsa, sysctlbyname("hw.optional.arm.FEAT_I8MM", &has, &size, nullptr, 0) == 0 && has);
        add(kNeonIsa, true); // all of Apple's have the dot product
#elif defined(__linux__) && defined(__aarch64__)
        add(kI8mmIsa, getauxval(AT_HWCAP2) & HWCAP2_I8MM);
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
