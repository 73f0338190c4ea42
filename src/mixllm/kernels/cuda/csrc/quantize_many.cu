// Many tokens' activations to int8 for the products on Hopper: what quantize.cu does, at the rate of issuing instructions.
//
// Compiled once for each set of these macros: INPUT, ROTATE, TAIL and GROUP as in quantize.cu; SUMMED 1 for its TILED 2; THREADS,
// the most in a block.
//
// A block goes through every gridDim-th token; the next one's inputs are on their way while it works. A thread has a quarter
// of a Hadamard block, vectors c, c + 4, c + 8 and c + 12 of its sixteen, so that only two of the seven butterflies want
// another lane's values: a shuffle costs as much as a sum. The only barrier of a token is that for its largest value.
#include "activations.cuh"
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
  int aligned;
};

constexpr u32 ABOVE = SUMMED ? SIGNS : 0u;  // unsigned codes, 128 too much
constexpr int MOST_WARPS = THREADS / 32, VECTORS = 4, WIDTH = GROUP == 0 ? 128 : GROUP;
static_assert(INPUT != 2, "float32 leaves no registers for the next token");

// Out of line, or what it computes is kept in registers from token to token.
__device__ __noinline__ void place_sum_apart(const Arguments& p, int token, int group, int sum) {
  place_sum(p.codes, p.padded / 128, p.tokens, token, group, sum);
}

struct Quarter {
  const Arguments& p;
  int first, c;  // the first input, and which quarter of its block

  __device__ __forceinline__ explicit Quarter(const Arguments& p) : p(p) {
    c = threadIdx.x % 4, first = threadIdx.x / 4 * 128 + c * 8;
  }
  __device__ __forceinline__ const void* row(int token) const {
    return static_cast<const u8*>(p.x) + token * p.x_pitch * INPUT_BYTES;
  }
  __device__ __forceinline__ void ask(int token, Raw (&raw)[VECTORS]) const {
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) raw[k] = load_raw(row(token), first + k * 32, p.inputs);
  }
  __device__ __forceinline__ void read(int token, const Raw (&raw)[VECTORS], float (&v)[VECTORS][8]) const {
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
      if (p.aligned)
        to_floats(raw[k], v[k]);
      else
        load_one_by_one(row(token), first + k * 32, p.inputs, v[k]);
    }
  }

  // As rotate(): strides 1, 2, 4 and then 32, 64 in registers, 8 and 16 between four lanes.
  __device__ __forceinline__ void rotate_all(float (&v)[VECTORS][8]) const {
    const bool tail = TAIL && first - c * 8 >= p.inputs / 128 * 128;
    const int block = tail ? p.tail_block : 128;
#pragma unroll
    for (int k = 0; k < VECTORS; ++k)
#pragma unroll
      for (int stride = 1; stride < 8; stride *= 2)
#pragma unroll
        for (int e = 0; e < 8; ++e) {
          if (e & stride || (TAIL && stride >= block)) continue;
          butterfly(v[k][e], v[k][e + stride]);
        }
#pragma unroll
    for (int stride = 8; stride < 32; stride *= 2) {
      const float sign = c & (stride / 8) ? -1.0f : 1.0f;
#pragma unroll
      for (int k = 0; k < VECTORS; ++k)
#pragma unroll
        for (int e = 0; e < 8; ++e) {
          const float turned = __fmaf_rn(v[k][e], sign, __shfl_xor_sync(0xFFFFFFFFu, v[k][e], stride / 8));
          v[k][e] = TAIL && stride >= block ? v[k][e] : turned;
        }
    }
#pragma unroll
    for (int apart = 1; apart < VECTORS; apart *= 2)
#pragma unroll
      for (int k = 0; k < VECTORS; ++k)
#pragma unroll
        for (int e = 0; e < 8; ++e) {
          if (k & apart || (TAIL && apart * 32 >= block)) continue;
          butterfly(v[k][e], v[k + apart][e]);
        }
    const float norm = tail ? p.tail_norm : NORM_128;
#pragma unroll
    for (int k = 0; k < VECTORS; ++k)
#pragma unroll
      for (int e = 0; e < 8; ++e) v[k][e] = __fmul_rn(v[k][e], norm);
  }

  // As place_tiled(): of vector c + 4 k the words 2 (c % 2) and 2 (c % 2) + 1 of piece 2 (k % 2) + c / 2 of half k / 2. Lanes c
  // and c ^ 2 trade, so that each has a whole 16-byte piece of either half.
  __device__ __forceinline__ void place(int token, const u32 (&packed)[VECTORS][2]) const {
    const bool upper = c >= 2;
    const int word = c % 2 * 2 + upper;
    i8* line = p.codes + (static_cast<i64>(first / 128) * p.tokens + token) * 128;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      u32 own[2], other[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const u32(&both)[2] = packed[half * 2 + i];
        own[i] = both[upper] ^ ABOVE, other[i] = __shfl_xor_sync(0xFFFFFFFFu, both[!upper], 2) ^ ABOVE;
      }
      if (first - c * 8 >= p.padded) continue;
      const Words4 piece = upper ? Words4{other[0], own[0], other[1], own[1]} : Words4{own[0], other[0], own[1], other[1]};
      *reinterpret_cast<Words4*>(line + ((half * 4 + word) ^ token % 8) * 16) = piece;
    }
  }

 private:
  __device__ __forceinline__ static void butterfly(float& a, float& b) {
    const float sum = __fadd_rn(a, b), difference = __fsub_rn(a, b);
    a = sum, b = difference;
  }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1) quantize(const __grid_constant__ Arguments p) {
  // Two sets each, used by turns.
  __shared__ u32 tops[2][MOST_WARPS];
  __shared__ int totals[2][MOST_WARPS];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  const Quarter its(p);
  let_next_kernel_start();
  wait_for_earlier_kernels();
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < p.flag_count; i += gridDim.x * blockDim.x) p.flags[i] = 0;

  // A token's sum is complete only at the next one's barrier.
  const auto write_sum = [&](int token, int turn) {
    if (GROUP != 0 || warp > 0) return;
    const int sum = __reduce_add_sync(0xFFFFFFFFu, lane < warps ? totals[turn][lane] : 0);
    if (lane == 0) p.sums[token] = sum;
  };
  Raw raw[VECTORS];
  if (p.aligned) its.ask(blockIdx.x, raw);
  int turn = 0, before = -1;
  for (int token = blockIdx.x; token < p.tokens; token += gridDim.x, turn ^= 1) {
    float v[VECTORS][8];
    its.read(token, raw, v);
    const int next = token + gridDim.x;
    if (p.aligned && next < p.tokens) its.ask(next, raw);
    if constexpr (ROTATE) its.rotate_all(v);
    u32 top = 0;
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) top = max(top, top_bits(v[k]));
    if constexpr (GROUP == 0) {
      top = __reduce_max_sync(0xFFFFFFFFu, top);
      if (lane == 0) tops[turn][warp] = top;
      __syncthreads();
      top = __reduce_max_sync(0xFFFFFFFFu, lane < warps ? tops[turn][lane] : 0u);
      if (before >= 0) write_sum(before, turn ^ 1);
    } else {
      // Four lanes have 128 inputs.
#pragma unroll
      for (int other = 1; other < WIDTH / 32; other *= 2) top = max(top, __shfl_xor_sync(0xFFFFFFFFu, top, other));
    }
    const Scale scale = scale_of(top);
    u32 packed[VECTORS][2];
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) round_to_codes(v[k], scale, packed[k]);
    its.place(token, packed);
    int sum = 0;
#pragma unroll
    for (int i = 0; i < VECTORS * 2; ++i) sum = __dp4a(static_cast<int>(packed[i / 2][i % 2]), static_cast<int>(ONES), sum);
    if constexpr (SUMMED) {
      int group = sum + __shfl_xor_sync(0xFFFFFFFFu, sum, 1);
      group += __shfl_xor_sync(0xFFFFFFFFu, group, 2);
      if (its.c == 0 && its.first < p.padded)
        place_sum_apart(p, token, its.first / 128, group);
    }
    if constexpr (GROUP == 0) {
      sum = __reduce_add_sync(0xFFFFFFFFu, sum);
      if (lane == 0) totals[turn][warp] = sum;
      if (threadIdx.x == 0) p.scales[token] = scale.value;
      before = token;
    } else if (its.first % WIDTH == 0 && its.first < p.inputs) {
      p.scales[static_cast<i64>(its.first / WIDTH) * p.scale_pitch + token] = scale.value;
    }
  }
  if constexpr (GROUP == 0) {
    __syncthreads();
    if (before >= 0) write_sum(before, turn ^ 1);
  }
}
