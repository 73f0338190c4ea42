// Runs the kernel ENTRY of KERNEL, a file of csrc.
#include KERNEL

extern "C" void emulate(int blocks, int threads, const Arguments* arguments) {
  gridDim.x = blocks, blockDim.x = threads;
  block_barrier = std::make_unique<std::barrier<>>(threads);
  warps.clear();
  for (int warp = 0; warp < threads / 32; ++warp) warps.push_back(std::make_unique<Warp>());
  std::memset(shared_memory, 0xA5, sizeof shared_memory);
  for (int block = 0; block < blocks; ++block) {
    for (auto& barrier : named_barriers) barrier.reset();
    std::vector<std::jthread> there;
    for (int thread = 0; thread < threads; ++thread)
      there.emplace_back([=] {
        threadIdx.x = thread, blockIdx.x = block;
        ENTRY(*arguments);
      });
  }
}
