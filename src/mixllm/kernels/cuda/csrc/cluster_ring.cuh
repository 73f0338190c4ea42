// What a block of cluster.cu has in shared memory, which tiles are its cluster's, and who fills the ring.
#pragma once
#include "direct.cuh"

constexpr int CREWS = 2, CONSUMERS = WM * CREWS, WRITER = CONSUMERS, THREADS = 32 * (CONSUMERS + 2);
constexpr int SCALES_AT = WM * SLOTS * 1024, STAGE_BYTES = SCALES_AT + WM * SLOTS * META4;
constexpr int MOST_STAGES = 16, PART_BYTES = 16 * BN * 4;
constexpr int FULL_AT = 0, EMPTY_AT = MOST_STAGES * 8, X_FULL_AT = 2 * MOST_STAGES * 8, SUMS_FULL_AT = X_FULL_AT + 8;
constexpr int SUMS_EMPTY_AT = SUMS_FULL_AT + 8, TOPS_FULL_AT = SUMS_EMPTY_AT + PEERS * 8;
constexpr int TABLE_AT = (TOPS_FULL_AT + 8 + 15) / 16 * 16, NOTES_AT = TABLE_AT + BN * 8;
constexpr int SUMS_AT = NOTES_AT + QUANTIZE * PEERS * BN * 8, X_AT = (SUMS_AT + PEERS * CREWS * PART_BYTES + 1023) / 1024 * 1024;
static_assert(WHOLE_SUM, "integers are handed over");
static_assert(PEERS % WM == 0 && SLOTS % (2 * CREWS) == 0, "equal shares; two sets of weights take turns");

// The part of a tile that a block multiplies.
struct Part {
  int row16, first, slots;  // its first 16-row tile; of all slots in a row the first, and how many
  bool eight;
};

// A cluster's tiles: 8-bit ones, twice as long, go round the clusters first; clusters that thereby have one less begin with two
// 4-bit ones; the rest goes round all.
struct Tiles {
  const Shape& shape;
  int clusters, cluster, own8, behind, place, first, own;  // first, own: the block's groups

  __device__ __forceinline__ explicit Tiles(const Shape& shape) : shape(shape) {
    clusters = gridDim.x / PEERS, cluster = blockIdx.x / PEERS;
    const int eights = (shape.rows8 + WM - 1) / WM, rest = eights % clusters;
    own8 = eights / clusters + (cluster < rest);
    behind = rest > 0 ? clusters - rest : 0;
    place = behind > 0 ? cluster - rest : -1;
    const int each = (shape.groups + PEERS - 1) / PEERS;
    first = min(static_cast<int>(cluster_rank()) * each, shape.groups);
    own = min(each, shape.groups - first);
  }

  __device__ __forceinline__ bool at(int index, Part& part) const {
    part.eight = index < own8;
    part.first = part.eight ? 2 * first : first, part.slots = part.eight ? 2 * own : own;
    const int four = index - own8, lead = place >= 0 ? 2 : 0;
    const int tile = part.eight ? cluster + index * clusters
                     : four < lead ? place + four * behind : 2 * behind + (four - lead) * clusters + cluster;
    part.row16 = tile * WM;
    return part.row16 < (part.eight ? shape.rows8 : shape.rows4);
  }
};

// Sums that are sent here | X | the ring.
struct Space {
  u32 base;
  int x_pitch, ring_at, stages;

  __device__ __forceinline__ Space(const Arguments& p, const Tiles& tiles, u32 base) : base(base) {
    x_pitch = (p.shape.tokens + 7) / 8 * 1024;
    ring_at = X_AT + (p.shape.groups + PEERS - 1) / PEERS * x_pitch;
    stages = min(MOST_STAGES, (SHARED - ring_at) / STAGE_BYTES);
  }
  __device__ __forceinline__ u32 stage(int number) const { return base + ring_at + number * STAGE_BYTES; }
  __device__ __forceinline__ u32 x() const { return base + X_AT; }
};

// A place in the ring and which time round it is.
struct Turn {
  int stage = 0;
  u32 parity = 0;
  __device__ __forceinline__ void next(int stages) {
    if (++stage == stages) stage = 0, parity ^= 1;
  }
};

__device__ __forceinline__ void ring_init(const Space& space) {
  for (int stage = 0; stage < MOST_STAGES; ++stage) {
    barrier_init(space.base + FULL_AT + stage * 8, 1);
    barrier_init(space.base + EMPTY_AT + stage * 8, CONSUMERS);
  }
  barrier_init(space.base + X_FULL_AT, QUANTIZE ? PEERS : 1);
  barrier_init(space.base + TOPS_FULL_AT, PEERS - 1);
  barrier_init(space.base + SUMS_FULL_AT, PEERS * CREWS);
  for (int peer = 0; peer < PEERS; ++peer) barrier_init(space.base + SUMS_EMPTY_AT + peer * 8, 1);
  barriers_made();
}

// The fetching lane's way through the stages of all tiles.
struct Walk {
  Part part;
  int index = 0, slot = 0;
  bool more;

  __device__ __forceinline__ explicit Walk(const Tiles& tiles) { more = tiles.own > 0 && tiles.at(0, part); }
  __device__ __forceinline__ void step(const Tiles& tiles) {
    slot += SLOTS;
    if (slot < part.slots) return;
    slot = 0, ++index;
    more = tiles.at(index, part);
  }
};

__device__ __forceinline__ void fill(const Arguments& p, const Walk& at, const Space& space, int stage) {
  const bool eight = at.part.eight;
  const int count = min(SLOTS, at.part.slots - at.slot), meta = eight ? META8 : META4;
  const int rows = min(WM, (eight ? p.shape.rows8 : p.shape.rows4) - at.part.row16);
  const int slots = eight ? 2 * p.shape.groups : p.shape.groups;
  const u32 full = space.base + FULL_AT + stage * 8, to = space.stage(stage);
  barrier_expect(full, rows * count * (1024 + meta));
  for (int row = 0; row < rows; ++row) {
    const i64 slot = static_cast<i64>(at.part.row16 + row) * slots + at.part.first + at.slot;
    copy_once(to + row * SLOTS * 1024, (eight ? p.codes8 : p.codes4) + slot * 1024, count * 1024, full);
    if (meta > 0) copy_once(to + SCALES_AT + row * SLOTS * META4, p.scales4 + slot * META4, count * META4, full);
  }
}
