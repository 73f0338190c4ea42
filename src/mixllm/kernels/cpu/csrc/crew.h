// Several pieces of parallel work in a row by threads that stay between them: one leads, the others help with what
// it posts. Nobody waits for a thread that has no piece in hand, so a busy machine that runs a helper late, or not
// at all, costs its help alone; with a parallel region for each piece of work all would wait for it every time.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

class Crew {
public:
    // The crew that this thread leads, or null.
    static thread_local Crew* led;

    explicit Crew(int threads) : shares_(new Share[threads]), threads_(threads) {}

    // f(i) for i in [0, end_of(threads - 1, threads)), as in_parallel of threads.h; only the leader calls it. Fewer
    // than 2^22.
    template <class EndOf, class Function>
    void work(const EndOf& end_of, const Function& f) {
        call_ = [](const void* function, int64_t i) { (*static_cast<const Function*>(function))(i); };
        function_ = &f;
        done_.store(0, std::memory_order_relaxed);
        const uint64_t job = posted_.load(std::memory_order_relaxed) + 1;
        int64_t from = 0;
        for (int s = 0; s < threads_; s++) {
            const int64_t end = end_of(s, threads_);
            shares_[s].ticket.store(job << 44 | uint64_t(end) << 22 | uint64_t(from), std::memory_order_release);
            from = end;
        }
        posted_.store(job, std::memory_order_release);
        take(0);
        for (int turn = 0; done_.load(std::memory_order_acquire) != from; turn++) wait(turn);
    }

    // Until the leader has finished.
    void help(int own) {
        uint64_t seen = 0;
        for (int turn = 0; !finished_.load(std::memory_order_acquire); turn++) {
            const uint64_t job = posted_.load(std::memory_order_acquire);
            if (job == seen) {
                wait(turn);
                continue;
            }
            seen = job;
            take(own);
            turn = 0;
        }
    }

    void finish() { finished_.store(true, std::memory_order_release); }

private:
    // The job's number, where the share ends, and the next piece in it. A thread that takes this piece by exchanging
    // the ticket knows by that alone that the job is not over: it is when all its pieces are done.
    struct Share {
        alignas(64) std::atomic<uint64_t> ticket{0};
    };

    // Pieces of one's own share, then of the others'.
    void take(int own) {
        constexpr uint64_t mask = (uint64_t(1) << 22) - 1;
        int64_t taken = 0;
        for (int turn = 0; turn < threads_; turn++) {
            std::atomic<uint64_t>& ticket = shares_[(own + turn) % threads_].ticket;
            for (uint64_t now = ticket.load(std::memory_order_acquire); (now & mask) < (now >> 22 & mask);) {
                if (!ticket.compare_exchange_weak(now, now + 1, std::memory_order_acq_rel, std::memory_order_acquire))
                    continue;
                call_(function_, int64_t(now & mask));
                taken++;
                now = ticket.load(std::memory_order_acquire);
            }
        }
        if (taken > 0) done_.fetch_add(taken, std::memory_order_release);
    }

    // What lies between two pieces of work takes microseconds; longer than that, somebody else may have the core.
    static void wait(int turn) {
        if (turn > 500)
            std::this_thread::yield();
        else
#if defined(__x86_64__)
            __builtin_ia32_pause();
#elif defined(__aarch64__)
            asm volatile("yield");
#else
            std::this_thread::yield();
#endif
    }

    std::unique_ptr<Share[]> shares_;
    const int threads_;
    // Of the job: written by the leader while no thread has a piece.
    void (*call_)(const void*, int64_t) = nullptr;
    const void* function_ = nullptr;
    alignas(64) std::atomic<uint64_t> posted_{0};
    alignas(64) std::atomic<int64_t> done_{0};
    alignas(64) std::atomic<bool> finished_{false};
};
