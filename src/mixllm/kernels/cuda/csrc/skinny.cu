// The product of gemm.cu for up to BN tokens on Hopper: Y^T = W X^T by wgmma, at the speed of reading W.
//
// Compiled once for each set of these macros: BN tokens, BM rows, WK slots a stage, STAGES; BLOCKS that an SM has room
// for; WEIGHT_SCALES and TOKEN_SCALES as in gemm.cu.
//
// One warp has the copy engine fill a ring (skinny_ring.cuh), warpgroups of 64 rows each turn stages into sums
// (skinny_sums.cuh). Activations come in the order and swizzle of hopper.cu. All blocks have equal bytes to read
// (schedule.cuh); a warp hands its part of a cut tile on by itself.
//
// The next kernel may start at once: where a block takes less than half of an SM, the next product's blocks are there
// while this one runs, with their rings full when its last sums are written.
constexpr int WM = BM / 16, WN = 1;
#include "skinny_sums.cuh"

static_assert(WM % 4 == 0 && WN == 1, "warpgroups of 64 rows and all tokens");

// What a lane must know of rows g and g + 8 of its warp, asked for before the sums are complete.
struct Pair {
  int channel[2];
  float scale[2], bias[2];

  __device__ __forceinline__ Pair(const Arguments& p, const Segment& s, int warp, int g) {
    const bool inside = s.row16 + warp < (s.eight ? p.shape.rows8 : p.shape.rows4);
    const int row = (s.row16 + warp + (s.eight ? 0 : p.shape.rows8)) * 16 + g;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      channel[h] = inside ? p.out.rows[row + 8 * h] : -1;
      scale[h] = inside && WEIGHT_SCALES == 0 ? p.out.row_scales[row + 8 * h] : 1.0f;
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) bias[h] = channel[h] >= 0 ? bias_of(p.out, channel[h]) : 0.0f;
  }
};

using Tile = Accumulators<1, BN / 8>;

// Straight from the registers: eight lanes have neighbouring rows of a token, whose channels are neighbours too but for
// the gaps that the other bit-width fills; L2 puts the pieces together.
__device__ __forceinline__ void write(const Tile& tile, const Arguments& p, const Pair& rows, u32 table, int c) {
  const Outputs& out = p.out;
#pragma unroll
  for (int j = 0; j < BN / 8; ++j) {
    if (j * 8 >= p.shape.tokens) break;
    const Words4 both = load_shared(table + (j * 8 + c * 2) * 8);
    const float token_scale[2] = {__uint_as_float(both.x), __uint_as_float(both.z)};
    const int excess[2] = {static_cast<int>(both.y), static_cast<int>(both.w)};
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int token = j * 8 + c * 2 + e;
      if (token >= p.shape.tokens) continue;
      const i64 line = static_cast<i64>(token) * out.channels;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        if (rows.channel[h] < 0) continue;
        const int bits = tile.v[0][j][2 * h + e];
        const float sum = WHOLE_SUM ? static_cast<float>(bits - excess[e]) : __int_as_float(bits);
        const float y = __fadd_rn(__fmul_rn(__fmul_rn(sum, token_scale[e]), rows.scale[h]), rows.bias[h]);
        if (out.type == Type::f32)
          static_cast<float*>(out.y)[line + rows.channel[h]] = y;
        else
          static_cast<u16*>(out.y)[line + rows.channel[h]] = to_bits(y, out.type);
      }
    }
  }
}

__device__ __forceinline__ void consume(const Arguments& p, const Plan& plan, u32 ring, int warp, int lane) {
  const u32 table = ring + TABLE_AT;
  wait_for_earlier_kernels();
  for (int t = threadIdx.x; t < BN; t += 32 * WM) {
    const Token token(p, t);
    store_shared_pair(table + t * 8, __float_as_uint(token.scale), token.excess);
  }
  named_barrier<32 * WM>(1);
  Turn turn;
  Segment here;
  for (int index = 0; plan.piece(index, here); ++index) {
    const Pair rows(p, here, warp, lane / 4);
    Sum sums[BN / 2];
    sum_piece(sums, here, ring, turn, warp, lane);
    Tile tile;
#pragma unroll
    for (int i = 0; i < BN / 2; ++i)
      tile.v[0][i / 4][i % 4] = WHOLE_SUM ? static_cast<int>(sums[i]) : __float_as_int(sums[i]);
    if (here.row16 + warp >= (here.eight ? p.shape.rows8 : p.shape.rows4)) continue;
    const Party party{WM, warp, 32, lane, true, true};
    if (here.end < here.slots) {
      give_partials(tile, p, party);
      continue;
    }
    if (here.begin > 0) take_partials(tile, p, plan, here.tile, party);
    write(tile, p, rows, table, lane % 4);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) mixed_gemm(const __grid_constant__ Arguments p) {
  extern __shared__ __align__(1024) u8 shared[];
  let_next_kernel_start();
  const u32 ring = shared_address(shared);
  Share& share = *reinterpret_cast<Share*>(shared + SHARE_AT);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const Plan plan{p.shape, share};
  if (threadIdx.x == 0) {
    share = plan.own_share();
    ring_init(ring);
  }
  __syncthreads();
  if (warp == WM)
    fetch_all(p, plan, ring, lane);
  else
    consume(p, plan, ring, warp, lane);
}
