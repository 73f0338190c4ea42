// What the warps of strips.cu that write do: they add up what the others leave of a strip in shared memory, and write it.
//
// Two share a strip, by tokens or, where those are one lot of 8, by rows; one alone took longer for a short strip than the
// others for the next one.
#pragma once
#include "strips_ring.cuh"

static_assert(NJ <= WRITERS && WRITERS == 2, "a writer has one lot of tokens");
constexpr int HALVES = NJ;  // of the strip's rows that a writer has

// A lane's share of a strip's sums: tokens 8 lot + 2 (lane % 4) + e, rows lane / 4 + 8 (half + h).
struct Written {
  int lot, half, lane;
  int v[HALVES][2];

  __device__ __forceinline__ Written(int writer, int lane)
      : lot(HALVES == 2 ? writer : 0), half(HALVES == 2 ? 0 : writer), lane(lane) {}
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int h = 0; h < HALVES; ++h) v[h][0] = v[h][1] = 0;
  }
  // Its part of sums that lie as Accumulators do in shared memory, [lot][lane] Words4.
  __device__ __forceinline__ u8* part_of(u8* sums) const { return sums + (lot * 32 + lane) * 16 + half * 8; }
  __device__ __forceinline__ void add(u8* sums) {
    Words2 both[HALVES];
    if constexpr (HALVES == 2) {
      const Words4 four = *reinterpret_cast<const Words4*>(part_of(sums));
      both[0] = {four.x, four.y}, both[1] = {four.z, four.w};
    } else {
      both[0] = *reinterpret_cast<const Words2*>(part_of(sums));
    }
#pragma unroll
    for (int h = 0; h < HALVES; ++h) v[h][0] = Tile::plus(v[h][0], both[h].x), v[h][1] = Tile::plus(v[h][1], both[h].y);
  }
  __device__ __forceinline__ void keep(u8* sums) const {
    Words2* to = reinterpret_cast<Words2*>(part_of(sums));
#pragma unroll
    for (int h = 0; h < HALVES; ++h) to[h] = {static_cast<u32>(v[h][0]), static_cast<u32>(v[h][1])};
  }
};

// Channels and scales of the rows of the next NOTES strips, on their way to shared memory: they come from memory, which takes
// longer than a short strip. Each writer has its own copy.
struct Notes {
  u32 at;
  int lane, half;
  int channel[HALVES];
  float scale[HALVES], bias[HALVES];

  __device__ __forceinline__ Notes(const Space& space, int writer, const Written& share)
      : at(space.base + NOTES_AT + writer * (NOTES * 128)), lane(share.lane), half(share.half) {}

  // The first NOTES strips, four at a time; later ones are counted in groups of copies, one each.
  __device__ __forceinline__ void begin(const Arguments& p, const Strips& strips) const {
#pragma unroll
    for (int first = 0; first < NOTES; first += 4) copy(p, strips, first + lane / 8, lane % 8);
#pragma unroll
    for (int index = 0; index < NOTES; ++index) copy_commit();
  }
  __device__ __forceinline__ void ask(const Arguments& p, const Strips& strips, int index) const {
    if (lane < 8) copy(p, strips, index, lane);
    copy_commit();
  }
  // Sixteen bytes of the eight that a strip has.
  __device__ __forceinline__ void copy(const Arguments& p, const Strips& strips, int index, int piece) const {
    Strip strip;
    if (!strips.at(index, strip)) return;
    const int row = (strip.row16 + (strip.eight ? 0 : p.shape.rows8)) * 16 + piece % 4 * 4;
    const u32 to = at + index % NOTES * 128 + piece * 16;
    if (piece < 4)
      copy_async(to, p.out.rows + row);
    else if (WEIGHT_SCALES == 0)
      copy_async(to, p.out.row_scales + row);
  }
  // Those of a strip; NOTES - 1 later ones may still be on their way.
  __device__ __forceinline__ void read(const Arguments& p, int index) {
    copy_wait<NOTES - 1>();
    __syncwarp();
    const u32 from = at + index % NOTES * 128 + (lane / 4 + half * 8) * 4;
#pragma unroll
    for (int h = 0; h < HALVES; ++h) {
      channel[h] = static_cast<int>(load_shared_u32(from + h * 32));
      scale[h] = WEIGHT_SCALES == 0 ? __uint_as_float(load_shared_u32(from + 64 + h * 32)) : 1.0f;
      bias[h] = channel[h] >= 0 ? bias_of(p.out, channel[h]) : 0.0f;
    }
  }
};

// As direct.cuh's, of a writer's share.
__device__ __forceinline__ void write(const Written& sums, const Arguments& p, const Notes& rows, u32 table, bool over) {
  const int first = sums.lot * 8 + sums.lane % 4 * 2;
  const TwoTokens tokens(table, first, over);
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    if (first + e >= p.shape.tokens) continue;
    const i64 line = static_cast<i64>(first + e) * p.out.channels;
#pragma unroll
    for (int h = 0; h < HALVES; ++h)
      put(p.out, line, rows.channel[h], tokens.output(e, sums.v[h][e], rows.scale[h], rows.bias[h]));
  }
}

// All that a writing warp does.
__device__ __forceinline__ void write_all(const Arguments& p, const Strips& strips, const Space& space, u8* shared, int writer,
                                          int lane) {
  const int chunks = chunks_of(p.shape);
  Written share(writer, lane);
  Notes rows(space, writer, share);
  rows.begin(p, strips);
  wait_for_earlier_kernels();
  int pieces = 0;
  go_through(
      strips, [](int, int) {},
      [&](const Strip& here, int index, int chunk) {
        const int set = pieces % 2;
        const bool last = chunk + 1 == chunks;
        u8* kept = shared + KEPT_AT + index % BATCH * (16 * BN * 4);
        share.clear();
        if (CHUNKED && chunk > 0) share.add(kept);
        if (last) rows.read(p, index);
        barrier_wait(space.base + SUMS_FULL_AT + set * 8, pieces / 2 % 2);
        u8* sums = shared + SUMS_AT + set * SUM_BYTES;
#pragma unroll
        for (int warp = 0; warp < WARPS; ++warp) share.add(sums + warp * (NJ * 512));
        barrier_arrive(space.base + SUMS_EMPTY_AT + set * 8);
        ++pieces;
        if (CHUNKED && !last) return share.keep(kept);
        write(share, p, rows, space.base + TABLE_AT, !here.eight);
        // All lanes have read the strip's notes.
        __syncwarp();
        rows.ask(p, strips, index + NOTES);
      },
      [](int) {});
}
