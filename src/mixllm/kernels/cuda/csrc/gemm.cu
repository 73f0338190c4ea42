// y[t, n] = sum over k of x[t, k] w[n, k] for rows of 4 and 8 bits and int8 activations, in one launch.
#include "gemm.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) mixed_gemm(const __grid_constant__ Arguments p) {
  multiply_tiles(p);
}
