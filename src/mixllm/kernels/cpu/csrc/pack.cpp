// A checkpoint's codes into the kernels' blocks of 16 rows; see docs/cpu.md, "Layout".
#include <cstring>

#include "threads.h"
#include "weight.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace {

// Large pages save a decode step, which reads every weight once, most of its address look-ups.
void prefer_large_pages(void* begin, int64_t bytes) {
#if defined(__linux__)
    const uintptr_t page = 1 << 21, from = (uintptr_t(begin) + page - 1) & ~(page - 1);
    const uintptr_t to = (uintptr_t(begin) + uintptr_t(bytes)) & ~(page - 1);
    if (from < to) madvise(reinterpret_cast<void*>(from), to - from, MADV_HUGEPAGE);
#else
    (void)begin, (void)bytes;
#endif
}

} // namespace

extern "C" {

// codes [rows, ceil(inputs / 2)] -> out [ceil(rows / 16)][padded inputs / 8][16][4]; missing codes are 0.
__attribute__((visibility("default"))) void mixllm_pack4(
    const uint8_t* codes, int64_t rows, int64_t inputs, uint8_t* out) {
    const int64_t padded = padded_inputs(inputs), pitch = ceil_div(inputs, 2), blocks = ceil_div(rows, kRows);
    prefer_large_pages(out, blocks * kRows * padded / 2);
    in_parallel(blocks, [&](int64_t block) {
        uint8_t* to = out + block * kRows * padded / 2;
        std::memset(to, 0, size_t(kRows * padded / 2));
        for (int64_t i = 0; i < kRows && block * kRows + i < rows; i++) {
            const uint8_t* from = codes + (block * kRows + i) * pitch;
            for (int64_t k = 0; k < inputs; k++) {
                const uint8_t code = k & 1 ? from[k / 2] >> 4 : from[k / 2] & 15;
                to[k / 8 * 64 + 4 * i + k % 4] |= uint8_t(k & 4 ? code << 4 : code);
            }
        }
    });
}

// codes [rows, inputs] -> out [ceil(rows / 16)][padded inputs / 4][16][4], the code + 128.
__attribute__((visibility("default"))) void mixllm_pack8(
    const int8_t* codes, int64_t rows, int64_t inputs, uint8_t* out) {
    const int64_t padded = padded_inputs(inputs), blocks = ceil_div(rows, kRows);
    prefer_large_pages(out, blocks * kRows * padded);
    in_parallel(blocks, [&](int64_t block) {
        uint8_t* to = out + block * kRows * padded;
        std::memset(to, 128, size_t(kRows * padded));
        for (int64_t i = 0; i < kRows && block * kRows + i < rows; i++)
            for (int64_t k = 0; k < inputs; k++)
                to[k / 4 * 64 + 4 * i + k % 4] = uint8_t(codes[(block * kRows + i) * inputs + k] + 128);
    });
}
}
