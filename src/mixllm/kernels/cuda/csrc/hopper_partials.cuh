// Sums of a tile that is cut along K: each warpgroup hands its own over by itself.
#pragma once
#include "hopper_epilogue.cuh"

__device__ __forceinline__ i64 partial_slot(int block, const Share64& share) {
  return static_cast<i64>(block * CONSUMERS + share.thread / 128) * (BN / 8) * 128 + share.thread % 128;
}

// This block has the beginning or the middle of a tile: its owner, in a later block, will want the sums.
__device__ __forceinline__ void give(const Sum (&d)[BN / 2], const Arguments& p, const Share64& share) {
  Words4* to = reinterpret_cast<Words4*>(p.partials) + partial_slot(blockIdx.x, share);
  const u32* bits = reinterpret_cast<const u32*>(d);
#pragma unroll
  for (int j = 0; j < BN / 8; ++j)
    store_l2(to + j * 128, {bits[j * 4], bits[j * 4 + 1], bits[j * 4 + 2], bits[j * 4 + 3]});
  // The barrier and the flag's release together order all of the warpgroup's sums before it.
  const int group = share.thread / 128;
  named_barrier<128>(ONE_GROUP + group);
  if (share.thread % 128 == 0) raise_flag(p.flags + blockIdx.x * CONSUMERS + group);
}

// This block has the end of a tile: add what the blocks before it have, nearest first, and lower their flags.
__device__ __forceinline__ void take(Sum (&d)[BN / 2], const Arguments& p, const Share64& share, int first_stage) {
  const Tiles tiles{p.shape};
  const int group = share.thread / 128;
  const bool first = share.thread % 128 == 0;
  int after = tiles.start_of(blockIdx.x);
  for (int block = blockIdx.x - 1; after > first_stage; --block) {
    const int start = tiles.start_of(block);
    if (start < after) {
      int* flag = p.flags + block * CONSUMERS + group;
      if (first) {
        while (read_flag(flag) == 0) {
        }
      }
      named_barrier<128>(ONE_GROUP + group);
      const Words4* from = reinterpret_cast<const Words4*>(p.partials) + partial_slot(block, share);
#pragma unroll
      for (int j = 0; j < BN / 8; ++j) {
        const Words4 more = load_l2(from + j * 128);
        const u32 words[4] = {more.x, more.y, more.z, more.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if constexpr (WHOLE_SUM)
            d[j * 4 + i] += words[i];
          else
            d[j * 4 + i] += __uint_as_float(words[i]);
        }
      }
      if (first) *flag = 0;
    }
    after = start;
  }
}
