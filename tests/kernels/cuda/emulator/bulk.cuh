// csrc/bulk.cuh for a CPU. A copy lands only when somebody waits for it: what is read too early is rubbish or old.
#pragma once
#include "ptx.cuh"

struct Barrier {
  int arrivals = 0, pending = 0, bytes = 0;
  u32 phase = 0;
  struct Copy {
    u32 to;
    const void* from;
    int bytes;
  };
  std::vector<Copy> copies;

  void count(int arrived, int bytes_more) {
    pending -= arrived, bytes += bytes_more;
    if (pending == 0 && bytes == 0) pending = arrivals, ++phase;
  }
};
inline Barrier barriers_of[MOST_PEERS][sizeof shared_memory / 8];
#define barriers_there barriers_of[block_in_cluster]
inline std::atomic_flag engine_busy;

struct Engine {
  Engine() {
    while (engine_busy.test_and_set()) std::this_thread::yield();
  }
  ~Engine() { engine_busy.clear(); }
};

inline void barrier_init(u32 barrier, int arrivals) {
  barriers_there[barrier / 8] = {};
  barriers_there[barrier / 8].arrivals = barriers_there[barrier / 8].pending = arrivals;
}
inline void barriers_made() {}
inline void barrier_expect(u32 barrier, int bytes) {
  const Engine engine;
  barriers_there[barrier / 8].count(1, bytes);
}
inline void barrier_arrive(u32 barrier) {
  const Engine engine;
  barriers_there[barrier / 8].count(1, 0);
}
inline void barrier_arrive_after_copies(u32 barrier) { barrier_arrive(barrier); }
inline void copy_bulk(u32 to, const void* from, int bytes, u32 barrier) {
  if (to % 16 || reinterpret_cast<u64>(from) % 16 || bytes % 16 || bytes <= 0) std::abort();
  const Engine engine;
  barriers_there[barrier / 8].copies.push_back({to, from, bytes});
}
inline void barrier_wait(u32 barrier, u32 parity) {
  Barrier& there = barriers_there[barrier / 8];
  for (;; std::this_thread::yield()) {
    const Engine engine;
    for (const auto& copy : there.copies) {
      std::memcpy(shared_memory + copy.to, copy.from, copy.bytes);
      there.count(0, -copy.bytes);
    }
    there.copies.clear();
    if (there.phase % 2 != parity) return;
  }
}
inline void copy_once(u32 to, const void* from, int bytes, u32 barrier) { copy_bulk(to, from, bytes, barrier); }
// What is asked for ahead must be there to read.
inline void prefetch_once(const void* from, int bytes) {
  if (reinterpret_cast<u64>(from) % 16 || bytes % 16 || bytes <= 0) std::abort();
  const volatile u8* there = static_cast<const u8*>(from);
  for (int i = 0; i < bytes; ++i) there[i];
}
inline void prefetch_l2(const void* from, int bytes) { prefetch_once(from, bytes); }
inline bool barrier_over_within(u32 barrier, u32 parity, int) {
  const Engine engine;
  return barriers_there[barrier / 8].phase % 2 != parity;
}
