// Which strips of strips.cu are whose, and the way through them: by slots for who fills the ring, by strips for who empties it.
#pragma once
#include "direct.cuh"

constexpr bool CHUNKED = CHUNK > 0;
constexpr int BATCH = 8;  // strips that a block has on the go with one chunk of X after the other

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

// Goes through a block's strips in the order in which they are multiplied: visit(strip, index, chunk) for each chunk of X.
// begin_chunk(turn, chunk), end_chunk(turn): before the first and behind the last strip of each.
template <typename Begin, typename Visit, typename End>
__device__ __forceinline__ void go_through(const Strips& strips, Begin begin_chunk, Visit visit, End end_chunk) {
  const int chunks = chunks_of(strips.shape);
  Strip here;
  int turn = 0;
  for (int begin = 0; strips.at(begin, here); begin += BATCH) {
    for (int chunk = 0; chunk < chunks; ++chunk, ++turn) {
      begin_chunk(turn, chunk);
      for (int index = begin; (!CHUNKED || index < begin + BATCH) && strips.at(index, here); ++index) visit(here, index, chunk);
      end_chunk(turn);
    }
    if (!CHUNKED) break;
  }
}
