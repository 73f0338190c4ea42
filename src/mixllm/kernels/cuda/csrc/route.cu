// Where tokens go when they are put in the order of their experts; one block.
//
// Inside an expert tokens come in any order: no row's sum depends on where the row lies.
#include "ptx.cuh"

constexpr int THREADS = 1024;

struct Routes {
  const i64* ids;  // [count]: each token's experts, `top` of them
  i64* token;      // [places]: whose row lies there, 0 where none does
  i64* place;      // [count]: where the row lies
  int* ranges;     // [experts][2]: first place, a multiple of 4; number of rows
  int count, top, experts, places;
};

extern "C" __global__ void __launch_bounds__(THREADS) route(const __grid_constant__ Routes p) {
  __shared__ int held[EXPERTS], next[EXPERTS];
  wait_for_earlier_kernels();
  let_next_kernel_start();
  for (int e = threadIdx.x; e < p.experts; e += THREADS) held[e] = 0;
  for (int i = threadIdx.x; i < p.places; i += THREADS) p.token[i] = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < p.count; i += THREADS) atomicAdd(&held[p.ids[i]], 1);
  __syncthreads();
  // Each expert's thread adds up those before it: a few hundred at most.
  for (int e = threadIdx.x; e < p.experts; e += THREADS) {
    int first = 0;
    for (int before = 0; before < e; ++before) first += (held[before] + 3) / 4 * 4;
    p.ranges[2 * e] = next[e] = first;
    p.ranges[2 * e + 1] = held[e];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < p.count; i += THREADS) {
    const int at = atomicAdd(&next[p.ids[i]], 1);
    p.token[at] = i / p.top;
    p.place[i] = at;
  }
}
