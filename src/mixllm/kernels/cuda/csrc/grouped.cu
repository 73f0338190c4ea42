// As gemm.cu for all experts of a mixture in one launch: each has rows of its own and the tokens routed to it.
//
// Tokens lie sorted by expert. How many each has is known on the GPU only, so the grid has blocks for any share of
// them: column y of the grid is expert y, whose blocks take its tiles in turn and leave where it has none.
//
//     tokens    | expert 0     | 1   | (2 has none) | 3            |     an expert's begin at a multiple of 4
//     tiles     | of 8 bits: 0 | 1 | 2 | 3 |   of 4 bits: 0 | 1 | 2 | 3 |     stacked, 16 rows each
#include "gemm.cuh"

struct Expert {
  int first8, rows8, first4, rows4;  // in 16-row tiles of all experts'
};

struct Routed {
  int first, count;  // tokens of an expert
};

struct Group {
  Arguments all;  // of all experts' weights and tokens; nothing is cut along K
  const Expert* experts;
  const Routed* tokens;
};

// The expert's part of all.
__device__ __forceinline__ Arguments part_of(const Group& p, int number) {
  const Expert expert = p.experts[number];
  const int first = p.tokens[number].first;
  Arguments own = p.all;
  const i64 groups = p.all.shape.groups, eights = expert.first8, fours = expert.first4;
  own.codes8 += eights * groups * 2048, own.codes4 += fours * groups * 1024;
  own.scales8 += eights * groups * META8, own.scales4 += fours * groups * META4;
  own.x += first * groups * 128, own.x_scales += first;
  own.out.rows += (eights + fours) * 16, own.out.row_scales += (eights + fours) * 16;
  own.out.x_sums += first;
  const i64 line = static_cast<i64>(p.all.out.channels) * (p.all.out.type == Type::f32 ? 4 : 2);
  own.out.y = static_cast<u8*>(p.all.out.y) + first * line;
  own.shape.tokens = p.tokens[number].count, own.shape.rows8 = expert.rows8, own.shape.rows4 = expert.rows4;
  return own;
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) grouped_gemm(const __grid_constant__ Group p) {
  __shared__ Arguments own;
  wait_for_earlier_kernels();
  if (p.tokens[blockIdx.y].count == 0) return;
  if (threadIdx.x == 0) own = part_of(p, blockIdx.y);
  __syncthreads();
  multiply_tiles(own);
}
