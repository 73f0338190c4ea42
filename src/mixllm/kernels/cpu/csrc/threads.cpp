#include "threads.h"

ParallelFor torch_parallel_for = nullptr;
ThreadCount torch_thread_count = nullptr;

thread_local Crew* Crew::led = nullptr;

int thread_count() {
    uint32_t count = 1;
    if (!torch_parallel_for || torch_thread_count(&count) != 0 || count < 1) return 1;
    return int(count);
}
