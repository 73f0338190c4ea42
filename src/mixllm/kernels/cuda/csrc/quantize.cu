// Activations to int8: [rotation,] scale and rounding of one token a block, kept in registers throughout.
// A token wider than 28,672 inputs takes several rounds; its values are then read and rotated twice.
//
// Compiled once for each set of these macros:
//   INPUT   0 float16, 1 bfloat16, 2 float32
//   VECTORS of 8 inputs a thread: vector v of thread t holds inputs 8 (v * threads + t) .. of a round
//   ROTATE  1: Hadamard blocks of 128 (a shorter last block in equal powers of two), method of rotation.py
//   TAIL    1: inputs % 128 is not 0, so the last block is shorter
//   GROUP   inputs that share a scale, 128, 256 or 512; 0: the whole token
//   PARTS   blocks of a cluster that share a token, a round each (sm_90): few tokens then take less time, and small blocks
//           find room beside the product that runs before; 1: a block has all of a token
//   TILED   1: codes in the order that hopper.cu's copies want; see place(). 2: they are unsigned, 128 too much, and
//           behind them are the sums of groups; see place_sum()
//   FUSED   what comes first: 0 nothing, 1 RMSNorm, 2 SiLU(x) * other; both round to the input's type where a model's
//           own layers do, after the norm (the SiLU) and after the product
// Every result agrees bit for bit with mixllm.kernels.activations.quantize_activations.
#include "activations.cuh"
#include "sm90.cuh"

struct Arguments {
  const void* x;      // [tokens][x_pitch], the first `inputs` of each row
  i8* codes;          // [tokens][padded], zeros from `inputs` on; or tiled
  float* scales;      // [groups of activations][scale_pitch]
  int* sums;          // [tokens], of a token's codes
  int* flags;         // set to zero for the product that follows
  i64 x_pitch;        // in elements
  int inputs, padded, tokens, scale_pitch, flag_count;
  int tail_block;     // the Hadamard's width in the last inputs % 128
  float tail_norm;    // fl32(tail_block ** -0.5)
  int aligned;        // rows begin on 16 bytes and are whole vectors
  int rounds;
  const void* other;  // FUSED 1: the norm's weight [inputs]; 2: what SiLU(x) is multiplied by, rows as x's
  float epsilon;      // FUSED 1
};

constexpr int MAX_THREADS = 896;  // 72 registers each, enough for 4 vectors; 28,672 inputs in one round
constexpr int MAX_WARPS = MAX_THREADS / 32;
constexpr int WIDTH = GROUP == 0 ? 128 : GROUP;

// Writes the codes of inputs at .. at + 7, in rows or tiled.
__device__ __forceinline__ void place(const Arguments& p, int token, int at, const u32 (&packed)[2]) {
  if constexpr (TILED)
    place_tiled(p.codes, p.tokens, token, at, packed);
  else
    *reinterpret_cast<u64*>(p.codes + static_cast<i64>(token) * p.padded + at) =
        packed[0] | static_cast<u64>(packed[1]) << 32;
}

__device__ __forceinline__ float as_input(float v) {
  if constexpr (INPUT == 0) return from_half_bits(to_half_bits(v));
  if constexpr (INPUT == 1) return from_bfloat_bits(to_bfloat_bits(v));
  return v;
}

// 1 / sqrt(mean of x^2 + epsilon) of the whole token.
__device__ __forceinline__ float inverse_norm(const Arguments& p, const void* row, float* sums) {
  float sum = 0.0f;
  for (int round = 0; round < p.rounds; ++round) {
    float v[VECTORS][8];
    load(p, row, round * VECTORS * 8 * blockDim.x, threadIdx.x, blockDim.x, v);
#pragma unroll
    for (int k = 0; k < VECTORS; ++k)
#pragma unroll
      for (int e = 0; e < 8; ++e) sum = __fmaf_rn(v[k][e], v[k][e], sum);
  }
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
#pragma unroll
  for (int other = 16; other > 0; other /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, other);
  if (lane == 0) sums[warp] = sum;
  __syncthreads();
  sum = lane < warps ? sums[lane] : 0.0f;
#pragma unroll
  for (int other = 16; other > 0; other /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, other);
  return rsqrtf(sum / p.inputs + p.epsilon);
}

// The values of one round, after what is fused, rotated. other: the norm's weight or the other factor's row.
__device__ __forceinline__ void fetch(const Arguments& p, const void* row, const void* other, float norm, int start,
                                      float (&v)[VECTORS][8]) {
  load(p, row, start, threadIdx.x, blockDim.x, v);
  if constexpr (FUSED != 0) {
    // One vector after the other: there are no registers for all.
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
      float w[1][8];
      load(p, other, start + k * blockDim.x * 8, threadIdx.x, blockDim.x, w);
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const float x = v[k][e];
        const float first = FUSED == 1 ? __fmul_rn(x, norm) : __fdiv_rn(x, 1.0f + expf(-x));
        v[k][e] = as_input(__fmul_rn(as_input(first), w[0][e]));
      }
    }
  }
  if constexpr (ROTATE) {
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
      const bool tail = TAIL && start + static_cast<int>(k * blockDim.x + threadIdx.x) * 8 >= p.inputs / 128 * 128;
      rotate(v[k], tail ? p.tail_block : 128, tail ? p.tail_norm : NORM_128);
    }
  }
}

// The largest |v| of the group that each of a thread's vectors belongs to.
__device__ __forceinline__ void group_tops(const float (&v)[VECTORS][8], u32 (&top)[VECTORS],
                                           u32 (*shared)[MAX_WARPS]) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int k = 0; k < VECTORS; ++k) {
    top[k] = top_bits(v[k]);
    if constexpr (GROUP == 128) {
      // Sixteen lanes hold a group.
#pragma unroll
      for (int other = 1; other < 16; other *= 2) top[k] = max(top[k], __shfl_xor_sync(0xFFFFFFFFu, top[k], other));
    } else {
      top[k] = __reduce_max_sync(0xFFFFFFFFu, top[k]);
    }
  }
  if constexpr (GROUP == 512) {
    // Two neighbouring warps hold a group.
    __syncthreads();
#pragma unroll
    for (int k = 0; k < VECTORS; ++k)
      if (lane == 0) shared[k][warp] = top[k];
    __syncthreads();
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) top[k] = max(top[k], shared[k][warp ^ 1]);
  }
}

// A round of a part's own, or all rounds.
__device__ __forceinline__ int first_round(u32 rank) { return PARTS > 1 ? static_cast<int>(rank) : 0; }
__device__ __forceinline__ int last_round(const Arguments& p, u32 rank) {
  return PARTS > 1 ? static_cast<int>(rank) : p.rounds - 1;
}

#if PARTS > 1
#define CLUSTER __attribute__((cluster_dims(PARTS, 1, 1)))
#else
#define CLUSTER
#endif

extern "C" __global__ void __launch_bounds__(MAX_THREADS, 1) CLUSTER quantize(const __grid_constant__ Arguments p) {
  __shared__ u32 tops[VECTORS][MAX_WARPS];
  __shared__ int total;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  const u32 rank = PARTS > 1 ? cluster_rank() : 0;
  const int token = blockIdx.x / PARTS, round_inputs = VECTORS * 8 * blockDim.x;
  const int first = first_round(rank), last = last_round(p, rank);
  // At once: the product's blocks may be there with their weights when this is done.
  let_next_kernel_start();
  if constexpr (PARTS > 1) cluster_arrive();
  wait_for_earlier_kernels();

  if (threadIdx.x == 0) total = 0;

  const i64 offset = token * p.x_pitch * (INPUT == 2 ? 4 : 2);
  const u8 *row = static_cast<const u8*>(p.x) + offset, *other = static_cast<const u8*>(p.other);
  float norm = 1.0f;
  if constexpr (FUSED == 1) {
    __shared__ float sums[MAX_WARPS];
    norm = inverse_norm(p, row, sums);
  } else {
    other += offset;
  }
  float v[VECTORS][8];
  u32 token_top = 0;
  if constexpr (GROUP == 0) {
    for (int round = first; round <= last; ++round) {
      fetch(p, row, other, norm, round * round_inputs, v);
#pragma unroll
      for (int k = 0; k < VECTORS; ++k) token_top = max(token_top, top_bits(v[k]));
    }
    token_top = __reduce_max_sync(0xFFFFFFFFu, token_top);
    if (lane == 0) tops[0][warp] = token_top;
    __syncthreads();
    token_top = __reduce_max_sync(0xFFFFFFFFu, lane < warps ? tops[0][lane] : 0u);
    if constexpr (PARTS > 1) {
      __shared__ u32 part_tops[PARTS];
      cluster_wait();  // the others are there
      if (threadIdx.x < PARTS) store_to_block(shared_address(part_tops + rank), threadIdx.x, token_top);
      if (rank == 0 && threadIdx.x == 0) p.sums[token] = 0;
      cluster_sync();
#pragma unroll
      for (int part = 0; part < PARTS; ++part) token_top = max(token_top, part_tops[part]);
    }
  } else if constexpr (PARTS > 1) {
    cluster_wait();
  }

  // Behind the loads, which are waited for, and by all blocks.
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < p.flag_count; i += gridDim.x * blockDim.x) p.flags[i] = 0;

  int sum = 0;
  const Scale token_scale = scale_of(token_top);
  // Backwards, since the last round is still in registers.
  for (int round = last; round >= first; --round) {
    if (GROUP != 0 || round < last) fetch(p, row, other, norm, round * round_inputs, v);
    u32 top[VECTORS];
    if constexpr (GROUP != 0) group_tops(v, top, tops);
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
      const int at = round * round_inputs + (k * blockDim.x + threadIdx.x) * 8;
      if (at >= p.padded) continue;
      const Scale s = GROUP == 0 ? token_scale : scale_of(top[k]);
      u32 packed[2];
      round_to_codes(v[k], s, packed);
      if constexpr (TILED == 2) {
        int group = __dp4a(static_cast<int>(packed[0]), static_cast<int>(ONES), 0);
        group = __dp4a(static_cast<int>(packed[1]), static_cast<int>(ONES), group);
#pragma unroll
        for (int other = 1; other < 16; other *= 2) group += __shfl_xor_sync(0xFFFFu << (lane & 16), group, other);
        if (at % 128 == 0)
          place_sum(p.codes, p.padded / 128, p.tokens, token, at / 128, group);
        const u32 above[2] = {packed[0] ^ SIGNS, packed[1] ^ SIGNS};
        place(p, token, at, above);
      } else {
        place(p, token, at, packed);
      }
      if constexpr (GROUP == 0) {
        sum = __dp4a(static_cast<int>(packed[0]), static_cast<int>(ONES), sum);
        sum = __dp4a(static_cast<int>(packed[1]), static_cast<int>(ONES), sum);
        if (at == 0) p.scales[token] = s.value;
      } else if (at % WIDTH == 0 && at < p.inputs) {
        p.scales[static_cast<i64>(at / WIDTH) * p.scale_pitch + token] = s.value;
      }
    }
  }
  if constexpr (GROUP == 0) {
    sum = __reduce_add_sync(0xFFFFFFFFu, sum);
    if (lane == 0) atomicAdd(&total, sum);
    __syncthreads();
    if (threadIdx.x == 0) {
      if constexpr (PARTS > 1)
        atomicAdd(p.sums + token, total);
      else
        p.sums[token] = total;
    }
  }
}
