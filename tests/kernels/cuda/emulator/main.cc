// Runs the kernel ENTRY of KERNEL, a file of csrc.
#include KERNEL

template <typename Parameter>
void call(void (*entry)(Parameter), const void* argument) {
  entry(*static_cast<const std::remove_cv_t<Parameter>*>(argument));
}

extern "C" void emulate(int blocks, int columns, int threads, const void* argument) {
  gridDim.x = blocks, gridDim.y = columns, blockDim.x = threads;
  block_barrier = std::make_unique<std::barrier<>>(threads);
  warps.clear();
  for (int warp = 0; warp < threads / 32; ++warp) warps.push_back(std::make_unique<Warp>());
  std::memset(shared_memory, 0xA5, sizeof shared_memory);
  for (int block = 0; block < blocks * columns; ++block) {
    for (auto& barrier : named_barriers) barrier.reset();
    std::vector<std::jthread> there;
    for (int thread = 0; thread < threads; ++thread)
      there.emplace_back([=] {
        threadIdx.x = thread, blockIdx.x = block % blocks, blockIdx.y = block / blocks;
        call(ENTRY, argument);
      });
  }
}
