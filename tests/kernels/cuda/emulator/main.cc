// Runs the kernel ENTRY of KERNEL, a file of csrc.
#include KERNEL

template <typename Parameter>
void call(void (*entry)(Parameter), const void* argument) {
  entry(*static_cast<const std::remove_cv_t<Parameter>*>(argument));
}

extern "C" void emulate(int blocks, int columns, int threads, const void* argument) {
  gridDim.x = blocks, gridDim.y = columns, blockDim.x = threads;
  for (auto& of_block : warps_of) {
    of_block.clear();
    for (int warp = 0; warp < threads / 32; ++warp) of_block.push_back(std::make_unique<Warp>());
  }
  std::memset(shared_memories, 0xA5, sizeof shared_memories);
  for (int block = 0; block < blocks * columns; block += MOST_PEERS) {
    cluster_barrier = std::make_unique<std::barrier<>>(threads * MOST_PEERS);
    for (auto& barrier : block_barriers) barrier = std::make_unique<std::barrier<>>(threads);
    for (auto& of_block : named_barriers_of)
      for (auto& barrier : of_block) barrier.reset();
    std::vector<std::jthread> there;
    for (int peer = 0; peer < MOST_PEERS; ++peer)
      for (int thread = 0; thread < threads; ++thread)
        there.emplace_back([=] {
          block_in_cluster = peer;
          threadIdx.x = thread, blockIdx.x = (block + peer) % blocks, blockIdx.y = (block + peer) / blocks;
          call(ENTRY, argument);
        });
  }
}
