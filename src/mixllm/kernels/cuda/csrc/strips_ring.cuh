// What a block of strips.cu has in shared memory, its way through strips and stages, and how a stage is filled.
#pragma once
#include "direct.cuh"

constexpr bool CHUNKED = CHUNK > 0;
// Beside those that multiply: the warp that writes, that which fetches weights, that which fetches chunks.
constexpr int WRITER = WARPS, FETCHER = WARPS + 1, THREADS = 32 * (WARPS + 2 + CHUNKED), NJ = BN / 8;
constexpr int META = META4 > META8 ? META4 : META8;
constexpr int SCALES_AT = SLOTS * 1024, STAGE_BYTES = SLOTS * (1024 + META);
constexpr int MOST_STAGES = 16, SUM_BYTES = WARPS * 16 * BN * 4, BATCH = 8, KEPT_BYTES = CHUNKED ? BATCH * 16 * BN * 4 : 0;
constexpr int FULL_AT = 0, EMPTY_AT = MOST_STAGES * 8, X_FULL_AT = 2 * MOST_STAGES * 8, X_EMPTY_AT = X_FULL_AT + 16;
constexpr int SUMS_FULL_AT = X_EMPTY_AT + 16, SUMS_EMPTY_AT = SUMS_FULL_AT + 16, TABLE_AT = SUMS_EMPTY_AT + 16;
constexpr int TOPS_AT = TABLE_AT + BN * 8, SUMS_AT = TOPS_AT + WARPS * 8, KEPT_AT = SUMS_AT + 2 * SUM_BYTES;
constexpr int X_AT = (KEPT_AT + KEPT_BYTES + 127) / 128 * 128;
static_assert(SLOTS % WARPS == 0 && SLOTS % 2 == 0, "warps have equal shares, and a stage begins with a group");
static_assert(!CHUNKED || PEERS == 1, "blocks of a cluster go through chunks at their own pace");

// X, or two chunks, its rows half a line more than they hold so that two tokens' lie in all banks | its scales, if tokens have
// one a group | the ring.
struct Space {
  u32 base;
  int x_pitch, x_bytes, x_scale_bytes, ring_at, stages;

  __device__ __forceinline__ Space(const Arguments& p, u32 base) : base(base) {
    x_pitch = (CHUNKED ? CHUNK : p.shape.groups) * 128 + 64;
    x_bytes = p.shape.tokens * x_pitch * (1 + CHUNKED);
    x_scale_bytes = TOKEN_SCALES ? 0 : ((p.shape.groups - 1 >> p.x_group_shift) + 1) * p.x_stride * 4;
    ring_at = (X_AT + x_bytes + x_scale_bytes + 127) / 128 * 128;
    stages = min(MOST_STAGES, (SHARED - ring_at) / STAGE_BYTES);
  }
  __device__ __forceinline__ u32 stage(int number) const { return base + ring_at + number * STAGE_BYTES; }
  __device__ __forceinline__ u32 x(int turn) const { return base + X_AT + turn % 2 * (x_bytes / 2); }
};

// 16 rows of one width, which are one block's.
struct Strip {
  int row16, slots;
  bool eight;
};

// A block's strips: 8-bit ones, twice as long, go round the blocks first; blocks that thereby have one less begin with two
// 4-bit ones; the rest goes round all blocks.
struct Strips {
  const Shape& shape;
  int own8, behind, place;  // behind: blocks with one 8-bit strip less; place: among them, negative if it has as many as any

  __device__ __forceinline__ explicit Strips(const Shape& shape) : shape(shape) {
    const int blocks = gridDim.x, block = blockIdx.x, rest = shape.rows8 % blocks;
    own8 = shape.rows8 / blocks + (block < rest);
    behind = rest > 0 ? blocks - rest : 0;
    place = behind > 0 ? block - rest : -1;
  }

  __device__ __forceinline__ bool at(int index, Strip& s) const {
    const int blocks = gridDim.x, block = blockIdx.x;
    s.eight = index < own8;
    s.slots = s.eight ? 2 * shape.groups : shape.groups;
    if (s.eight) {
      s.row16 = block + index * blocks;
      return true;
    }
    const int four = index - own8, lead = place >= 0 ? 2 : 0;
    s.row16 = four < lead ? place + four * behind : 2 * behind + (four - lead) * blocks + block;
    return s.row16 < shape.rows4;
  }
};

// A place in the ring and which time round it is.
struct Turn {
  int stage = 0;
  u32 parity = 0;
  __device__ __forceinline__ void next(int stages) {
    if (++stage == stages) stage = 0, parity ^= 1;
  }
};

__device__ __forceinline__ int chunks_of(const Shape& shape) { return CHUNKED ? (shape.groups + CHUNK - 1) / CHUNK : 1; }

// The slots of a strip that a chunk of X is for.
struct Part {
  int begin, end;

  __device__ __forceinline__ Part(const Strip& strip, int chunk) : begin(0), end(strip.slots) {
    if (!CHUNKED) return;
    const int each = strip.eight ? 2 * CHUNK : CHUNK;
    begin = chunk * each, end = min(begin + each, strip.slots);
  }
};

// The way through the stages of all strips.
struct Walk {
  Strip strip;
  int index = 0, slot, end, chunk = 0;
  bool more;

  __device__ __forceinline__ explicit Walk(const Strips& strips) { enter(strips); }
  __device__ __forceinline__ void enter(const Strips& strips) {
    more = strips.at(index, strip);
    const Part part(strip, chunk);
    slot = part.begin, end = part.end;
  }
  __device__ __forceinline__ void step(const Strips& strips) {
    slot += SLOTS;
    if (slot < end) return;
    ++index;
    if (CHUNKED && (index % BATCH == 0 || !strips.at(index, strip))) {
      if (++chunk < chunks_of(strips.shape))
        index = (index - 1) / BATCH * BATCH;
      else
        chunk = 0;
    }
    enter(strips);
  }
};

__device__ __forceinline__ void fill(const Arguments& p, const Walk& at, const Space& space, int stage) {
  const bool eight = at.strip.eight;
  const int count = min(SLOTS, at.end - at.slot), meta = eight ? META8 : META4;
  const int first_group = eight ? at.slot / 2 : at.slot, groups = eight ? (count + 1) / 2 : count;
  const u32 full = space.base + FULL_AT + stage * 8, to = space.stage(stage);
  barrier_expect(full, count * 1024 + groups * meta);
  const i64 slot = static_cast<i64>(at.strip.row16) * at.strip.slots + at.slot;
  copy_once(to, (eight ? p.codes8 : p.codes4) + slot * 1024, count * 1024, full);
  if (meta > 0) {
    const i64 group = static_cast<i64>(at.strip.row16) * p.shape.groups + first_group;
    copy_once(to + SCALES_AT, (eight ? p.scales8 : p.scales4) + group * meta, groups * meta, full);
  }
}
