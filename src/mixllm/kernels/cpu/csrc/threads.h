// torch's own threads: work runs in the pool that torch.set_num_threads sizes, through torch's C interface.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>

#include "crew.h"

typedef int32_t (*ParallelFor)(int64_t, int64_t, int64_t, void (*)(int64_t, int64_t, void*), void*);
typedef int32_t (*ThreadCount)(uint32_t*);

// Set once, when the library is loaded; without them the caller's thread does all.
extern ParallelFor torch_parallel_for;
extern ThreadCount torch_thread_count;

int thread_count();

// f(i) for i in [0, count), in any order. Each thread has a contiguous share, the same in every call with the
// same costs, so that it finds in its caches, or in its own memory, what it touched before; who finishes early
// takes from the others' ends. end_of(s, shares) is where share s ends.
template <class EndOf, class Function>
void in_parallel(const EndOf& end_of, const Function& f) {
    if (Crew::led) return Crew::led->work(end_of, f);
    struct Share {
        alignas(64) std::atomic<int64_t> next;
        int64_t end;
    };
    struct Work {
        std::unique_ptr<Share[]> shares;
        int count;
        const Function* f;
    };
    Work work{nullptr, thread_count(), &f};
    if (work.count == 1) {
        for (int64_t i = 0, end = end_of(0, 1); i < end; i++) f(i);
        return;
    }
    work.shares.reset(new Share[work.count]);
    for (int s = 0; s < work.count; s++) {
        work.shares[s].next = s ? end_of(s - 1, work.count) : 0;
        work.shares[s].end = end_of(s, work.count);
    }
    auto body = [](int64_t first, int64_t last, void* context) {
        Work& work = *static_cast<Work*>(context);
        for (int64_t own = first; own < last; own++)
            for (int turn = 0; turn < work.count; turn++) {
                Share& share = work.shares[(own + turn) % work.count];
                for (int64_t i; (i = share.next.fetch_add(1, std::memory_order_relaxed)) < share.end;) (*work.f)(i);
            }
    };
    torch_parallel_for(0, work.count, 1, body, &work);
}

// The same with equal costs.
template <class Function>
void in_parallel(int64_t count, const Function& f) {
    in_parallel([=](int64_t s, int64_t shares) { return count * (s + 1) / shares; }, f);
}

// `lead`, whose parallel work is done by threads that stay for all of it.
template <class Lead>
void with_crew(const Lead& lead) {
    struct Work {
        Crew crew;
        const Lead* lead;
    };
    const int threads = thread_count();
    if (threads == 1) return lead();
    Work work{Crew(threads), &lead};
    auto body = [](int64_t first, int64_t last, void* context) {
        Work& work = *static_cast<Work*>(context);
        for (int64_t own = first; own < last; own++) {
            if (own > 0) {
                work.crew.help(int(own));
                continue;
            }
            Crew::led = &work.crew;
            (*work.lead)();
            Crew::led = nullptr;
            work.crew.finish();
        }
    };
    torch_parallel_for(0, threads, 1, body, &work);
}
