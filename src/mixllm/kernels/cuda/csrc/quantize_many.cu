// Many tokens' activations to int8 for the products on Hopper: what quantize.cu does, at the rate of issuing instructions.
//
// Compiled once for each set of these macros: INPUT, ROTATE, TAIL and GROUP as in quantize.cu; SUMMED 1 for its TILED 2; THREADS,
// the most in a block; AHEAD 1: a thread asks for its share of the next token while it works on this one.
//
// An SM has one block, whose threads are divided among as many tokens as they have room for; each such team goes on with
// further tokens, and nothing but a barrier of its own, for the token's largest value, holds it up. half_blocks.cuh says what a
// thread has.
#include "half_blocks.cuh"
#include "sm90.cuh"

struct Arguments {
  const void* x;   // [tokens][x_pitch], the first `inputs` of each row
  i8* codes;       // [groups of 128][tokens][128], tiled; zeros from `inputs` on
  float* scales;   // [groups of activations][scale_pitch]
  int* sums;       // [tokens], of a token's codes, where GROUP is 0
  int* flags;      // set to zero for the product that follows
  i64 x_pitch;     // in elements
  int inputs, padded, tokens, scale_pitch, flag_count;
  int tail_block;  // the Hadamard's width in the last inputs % 128
  float tail_norm;
  int aligned;     // always: rows begin on 16 bytes and are whole vectors of 8
};

constexpr int MOST_WARPS = THREADS / 32, WIDTH = GROUP == 0 ? 128 : GROUP, WARP_INPUTS = 32 * THREAD_INPUTS;

// Out of line, or what it computes is kept in registers from token to token.
__device__ __noinline__ void place_sum_apart(const Arguments& p, int token, int group, int sum) {
  place_sum(p.codes, p.padded / 128, p.tokens, token, group, sum);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) quantize(const __grid_constant__ Arguments p) {
  extern __shared__ __align__(128) u8 shared[];
  // Two sets each, used by turns.
  __shared__ u32 tops[2][MOST_WARPS];
  __shared__ int totals[2][MOST_WARPS];
  const int lane = threadIdx.x % 32, warps = (p.padded + WARP_INPUTS - 1) / WARP_INPUTS;
  const int team = threadIdx.x / 32 / warps, warp = threadIdx.x / 32 % warps, first = team * warps;
  const int teams = blockDim.x / 32 / warps, step = gridDim.x * teams;
  const HalfBlock<Arguments> its(p, warp * 32 + lane);
  let_next_kernel_start();
  wait_for_earlier_kernels();
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < p.flag_count; i += gridDim.x * blockDim.x) p.flags[i] = 0;

  // A token's sum is complete only at the next one's barrier.
  const auto write_sum = [&](int token, int turn) {
    if (GROUP != 0 || warp > 0) return;
    const int sum = __reduce_add_sync(0xFFFFFFFFu, lane < warps ? totals[turn][first + lane] : 0);
    if (lane == 0) p.sums[token] = sum;
  };
  int turn = 0, before = -1;
  int token = blockIdx.x * teams + team;
  const u32 room = AHEAD ? shared_address(shared) + threadIdx.x / 32 * WARP_INPUTS * INPUT_BYTES : 0;
  if constexpr (AHEAD) {
    its.clear(room);
    if (token < p.tokens) its.ask(token, room);
  }
  for (; token < p.tokens; token += step, turn ^= 1) {
    Values v;
    Words4 raw[SIXTEENS];
    if constexpr (AHEAD)
      its.take(room, raw);
    else
      its.load(token, raw);
    all_to_floats(raw, v);
    if (AHEAD && token + step < p.tokens) its.ask(token + step, room);
    if constexpr (ROTATE) its.rotate_all(v);
    u32 top = __float_as_uint(__fmul_rn(largest_of(v), its.norm()));
    if constexpr (GROUP == 0) {
      top = __reduce_max_sync(0xFFFFFFFFu, top);
      if (lane == 0) tops[turn][first + warp] = top;
      named_barrier(team, warps * 32);
      top = __reduce_max_sync(0xFFFFFFFFu, lane < warps ? tops[turn][first + lane] : 0u);
      if (before >= 0) write_sum(before, turn ^ 1);
    } else {
      // Two lanes have 128 inputs.
#pragma unroll
      for (int other = 1; other < WIDTH / THREAD_INPUTS; other *= 2)
        top = max(top, __shfl_xor_sync(0xFFFFFFFFu, top, other));
    }
    const Scale scale = scale_of(top);
    Codes codes;
    round_all(v, scale, its.norm(), its.own_sign(), codes);
    its.place(token, codes);
    if constexpr (SUMMED) {
      const int half = sum_of(codes), group = half + __shfl_xor_sync(0xFFFFFFFFu, half, 1);
      if (its.c == 0 && its.block < p.padded) place_sum_apart(p, token, its.block / 128, group);
    }
    if constexpr (GROUP == 0) {
      const int sum = sum_of_warp(codes);
      if (lane == 0) totals[turn][first + warp] = sum;
      if (warp == 0 && lane == 0) p.scales[token] = scale.value;
      before = token;
    } else if (its.c == 0 && its.block % WIDTH == 0 && its.block < p.inputs) {
      p.scales[static_cast<i64>(its.block / WIDTH) * p.scale_pitch + token] = scale.value;
    }
  }
  if constexpr (GROUP == 0) {
    if (before < 0) return;
    named_barrier(team, warps * 32);
    write_sum(before, turn ^ 1);
  }
}
