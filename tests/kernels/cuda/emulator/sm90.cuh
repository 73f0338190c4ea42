// csrc/sm90.cuh for a CPU: a cluster is PEERS blocks.
#pragma once
#include <optional>

#include "bulk.cuh"

constexpr u32 DYNAMIC_SHARED = 1024;
inline void trap() { std::abort(); }
inline u32 moved(u32 x) { return x; }

inline thread_local std::optional<std::barrier<>::arrival_token> arrived;
inline void cluster_arrive() { arrived = cluster_barrier->arrive(); }
inline void cluster_wait() {
  cluster_barrier->wait(std::move(*arrived));
  arrived.reset();
}
inline void lane_waits_for_cluster() { cluster_wait(); }
inline void cluster_sync() { cluster_arrive(), cluster_wait(); }
inline u32 cluster_rank() { return block_in_cluster; }
inline void store_to_block(u32 to, u32 rank, u32 v) { std::memcpy(shared_memories[rank] + to, &v, 4); }
template <int PEERS_THERE>
inline void copy_to_all(u32 to, const void* from, int bytes, u32 barrier) {
  const int own = block_in_cluster;
  for (block_in_cluster = 0; block_in_cluster < PEERS_THERE; ++block_in_cluster) copy_bulk(to, from, bytes, barrier);
  block_in_cluster = own;
}
template <int EACH>
inline void shrink_registers() {}
template <int EACH>
inline void grow_registers() {}

inline void store_transposed(u32 to, const u32 (&m)[4]) {
  Warp& warp = own_warp();
  const int lane = threadIdx.x % 32;
  std::copy(m, m + 4, warp.a[lane]);
  __syncwarp();
  for (int line = 0; line < 8; ++line) {
    const int column = lane % 8;
    const u16 v = static_cast<u16>(warp.a[line * 4 + column / 2][lane / 8] >> column % 2 * 16);
    std::memcpy(shared_memory + to + line * 2, &v, 2);
  }
  __syncwarp();
}
inline void store_shared_halves(u32 low_to, u32 high_to, u32 x) {
  const u16 halves[2] = {static_cast<u16>(x), static_cast<u16>(x >> 16)};
  std::memcpy(shared_memory + low_to, halves, 2), std::memcpy(shared_memory + high_to, halves + 1, 2);
}
inline void store_shared_u32(u32 to, u32 x) { std::memcpy(shared_memory + to, &x, 4); }
inline void store_shared_pair(u32 to, u32 x, u32 y) {
  std::memcpy(shared_memory + to, &x, 4), std::memcpy(shared_memory + to + 4, &y, 4);
}
inline void load_shared_pair(u32 from, u32& x, u32& y) { x = from_shared<u32>(from), y = from_shared<u32>(from + 4); }

template <Type TYPE>
inline u32 to_pair(float low, float high) {
  const auto bits = [](float v) { return TYPE == Type::f16 ? to_half_bits(v) : to_bfloat_bits(v); };
  return bits(low) | static_cast<u32>(bits(high)) << 16;
}
