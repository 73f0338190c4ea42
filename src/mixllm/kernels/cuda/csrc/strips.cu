// The product of skinny.cu for so few tokens that a block has all of X in shared memory: strips of 16 rows, none cut.
//
// Compiled once for each set of these macros: BN tokens; WARPS that share a strip's slots; SLOTS a stage; SHARED bytes that a
// block has; BLOCKS that an SM has room for; WEIGHT_SCALES and TOKEN_SCALES as in gemm.cu. CHUNK 0: all of X is there at one
// time; else so many groups of it and the next ones. QUANTIZE 0: X comes quantized. Else each block quantizes all of it for
// itself, up to QUANTIZE tokens with one scale each, VECTORS of 8 inputs a thread; INPUT, ROTATE and TAIL as in quantize.cu.
//
// Handing over a cut tile's sums from block to block takes 2 to 3 us however little there is to read. A strip is so little
// that whole ones come out nearly even over the SMs, and what is uneven costs less than it seems: the SMs that have one
// more share the memory's whole bandwidth at the end. The warps of a block have every WARPS-th slot of a strip; one more
// warp adds up what they leave in shared memory and writes it, so that they need not wait for each other.
//
// One lane has the copy engine fill a ring with slots, which lie one after the other in memory, and their scales; and once
// earlier kernels are done, all of X, in rows. With room for two blocks on an SM the next product's blocks are there while
// this one runs, their rings full.
//
// Where all of X has no room, up to BATCH strips are multiplied by one chunk of it after the other, which another warp asks
// for; their sums are kept meanwhile.
constexpr int BM = 16, WM = 1;
#if QUANTIZE > 0
#include "activations.cuh"
#endif
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
static_assert(!CHUNKED || QUANTIZE == 0, "a token's scale wants all of it");

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
  copy_bulk(to, (eight ? p.codes8 : p.codes4) + slot * 1024, count * 1024, full);
  if (meta > 0) {
    const i64 group = static_cast<i64>(at.strip.row16) * p.shape.groups + first_group;
    copy_bulk(to + SCALES_AT, (eight ? p.scales8 : p.scales4) + group * meta, groups * meta, full);
  }
}

#if QUANTIZE > 0
struct Given {
  Arguments product;
  const void* x;    // [tokens][x_pitch], the first `inputs` of each row
  i64 x_pitch;      // in elements
  int inputs;
  int tail_block;   // as in quantize.cu
  float tail_norm;
  int aligned;
};

__device__ __forceinline__ const Arguments& product_of(const Given& given) { return given.product; }
__device__ __forceinline__ void fetch_x(const Given&, const Space&) {}

// X into shared memory and what write() must know of it, by WARPS / QUANTIZE warps a token.
__device__ __forceinline__ void await_x(const Given& given, const Space& space, u8* shared, int warp, int lane) {
  constexpr int SHARERS = WARPS / QUANTIZE, EACH = 32 * SHARERS;
  static_assert(WARPS % QUANTIZE == 0 && QUANTIZE <= BN && TOKEN_SCALES, "whole warps for a token's one scale");
  const Shape& shape = given.product.shape;
  const int token = warp / SHARERS, thread = threadIdx.x % EACH;
  const bool there = token < shape.tokens;
  u32* tops = reinterpret_cast<u32*>(shared + TOPS_AT);
  int* totals = reinterpret_cast<int*>(tops + WARPS);
  const auto top_of = [&](int token) {
    u32 top = 0;
    for (int sharer = 0; sharer < SHARERS; ++sharer) top = max(top, tops[token * SHARERS + sharer]);
    return top;
  };
  float v[VECTORS][8];
  u32 top = 0;
  if (there) {
    load(given, static_cast<const u8*>(given.x) + token * given.x_pitch * INPUT_BYTES, 0, thread, EACH, v);
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
      if constexpr (ROTATE) {
        const bool tail = TAIL && (k * EACH + thread) * 8 >= given.inputs / 128 * 128;
        rotate(v[k], tail ? given.tail_block : 128, tail ? given.tail_norm : NORM_128);
      }
      top = max(top, top_bits(v[k]));
    }
  }
  top = __reduce_max_sync(0xFFFFFFFFu, top);
  if (lane == 0) tops[warp] = top;
  named_barrier<32 * WARPS>(1);
  const Scale scale = scale_of(top_of(token));
  int sum = 0;
  if (there) {
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
      const int at = (k * EACH + thread) * 8;
      if (at >= shape.groups * 128) continue;
      u32 packed[2];
      round_to_codes(v[k], scale, packed);
      *reinterpret_cast<u64*>(shared + X_AT + token * space.x_pitch + at) = packed[0] | static_cast<u64>(packed[1]) << 32;
      sum = __dp4a(static_cast<int>(packed[0]), static_cast<int>(ONES), sum);
      sum = __dp4a(static_cast<int>(packed[1]), static_cast<int>(ONES), sum);
    }
  }
  sum = __reduce_add_sync(0xFFFFFFFFu, sum);
  if (lane == 0) totals[warp] = sum;
  named_barrier<32 * WARPS>(1);
  if (threadIdx.x < QUANTIZE && threadIdx.x < shape.tokens) {
    int total = 0;
    for (int sharer = 0; sharer < SHARERS; ++sharer) total += totals[threadIdx.x * SHARERS + sharer];
    const float its = scale_of(top_of(threadIdx.x)).value;
    store_shared_pair(space.base + TABLE_AT + threadIdx.x * 8, __float_as_uint(its), total * 128);
  }
}
#else
using Given = Arguments;

__device__ __forceinline__ const Arguments& product_of(const Given& given) { return given; }

// Inputs first .. first + bytes - 1 of all tokens, the turn-th that are asked for, and with the first ones X's scales.
__device__ __forceinline__ void ask_for_x(const Given& p, const Space& space, int turn, int first, int bytes) {
  const u32 full = space.base + X_FULL_AT + turn % 2 * 8, x = space.x(turn);
  const int row = p.shape.groups * 128, scales = turn == 0 ? space.x_scale_bytes : 0;
  barrier_expect(full, p.shape.tokens * bytes + scales);
  for (int token = 0; token < p.shape.tokens; ++token)
    copy_bulk(x + token * space.x_pitch, p.x + static_cast<i64>(token) * row + first, bytes, full);
  if (!TOKEN_SCALES && scales > 0) copy_bulk(space.base + X_AT + space.x_bytes, p.x_scales, scales, full);
}

__device__ __forceinline__ void fetch_x(const Given& p, const Space& space) {
  if (CHUNKED) return;
  wait_for_earlier_kernels();
  ask_for_x(p, space, 0, 0, p.shape.groups * 128);
}

// All that the lane that fetches chunks does.
__device__ __forceinline__ void fetch_chunks(const Given& p, const Strips& strips, const Space& space) {
  const int row = p.shape.groups * 128;
  wait_for_earlier_kernels();
  Strip strip;
  int turn = 0;
  for (int begin = 0; strips.at(begin, strip); begin += BATCH)
    for (int first = 0; first < row; first += CHUNK * 128, ++turn) {
      if (turn > 1) barrier_wait(space.base + X_EMPTY_AT + turn % 2 * 8, (turn / 2 - 1) % 2);
      ask_for_x(p, space, turn, first, min(CHUNK * 128, row - first));
    }
}

__device__ __forceinline__ void await_x(const Given& p, const Space& space, u8*, int, int) {
  note_tokens<32 * WARPS>(p, space.base + TABLE_AT, threadIdx.x);
  if (!CHUNKED) barrier_wait(space.base + X_FULL_AT, 0);
}
#endif

// All that the fetching lane does.
__device__ __forceinline__ void fetch_all(const Given& given, const Strips& strips, const Space& space) {
  const Arguments& p = product_of(given);
  Walk at(strips);
  for (int stage = 0; stage < space.stages && at.more; ++stage) {
    fill(p, at, space, stage);
    at.step(strips);
  }
  fetch_x(given, space);
  Turn turn;
  for (; at.more; turn.next(space.stages)) {
    barrier_wait(space.base + EMPTY_AT + turn.stage * 8, turn.parity);
    fill(p, at, space, turn.stage);
    at.step(strips);
  }
}

// A lane's activations: of tokens 8 j + lane / 4, or of the last one where there are fewer.
struct Tokens {
  u32 line[NJ], scales;
  int shift, stride;

  // chunk: which one X's turn is.
  __device__ __forceinline__ Tokens(const Arguments& p, const Space& space, int turn, int chunk, int lane) {
    const u32 x = (CHUNKED ? space.x(turn) - chunk * CHUNK * 128 : space.x(0)) + lane % 4 * 16;
#pragma unroll
    for (int j = 0; j < NJ; ++j) line[j] = x + min(j * 8 + lane / 4, p.shape.tokens - 1) * space.x_pitch;
    scales = space.base + X_AT + space.x_bytes + lane % 4 * 8;
    shift = p.x_group_shift, stride = p.x_stride * 4;
  }
  // Its sixteen of inputs 64 n .. 64 n + 63.
  __device__ __forceinline__ Words4 words(int n, int j) const { return load_shared(line[j] + n * 64); }
  // Of token 8 j + 2 (lane % 4) + e; of a token that is not there, whatever lies there.
  __device__ __forceinline__ float scale(int group, int j, int e) const {
    return __uint_as_float(load_shared_u32(scales + (group >> shift) * stride + j * 32 + e * 4));
  }
};

// What a lane needs of a slot where sums are whole: asked for before the slot before is multiplied.
template <bool EIGHT>
struct Slot {
  static constexpr int PANELS = EIGHT ? 1 : 2;  // of 64 inputs
  Words4 codes[2], x[PANELS][NJ];
  u32 affine;

  // w: where the lane's codes are; scales: its tile's; number: of the slot in its row.
  __device__ __forceinline__ void load(const Tokens& tokens, u32 w, u32 scales, int number, int lane) {
    codes[0] = load_shared(w), codes[1] = load_shared(w + 512);
    if constexpr (!EIGHT) affine = load_shared_u16(scales + lane / 4 * 2);
#pragma unroll
    for (int panel = 0; panel < PANELS; ++panel)
#pragma unroll
      for (int j = 0; j < NJ; ++j) x[panel][j] = tokens.words(number * PANELS + panel, j);
  }
  __device__ __forceinline__ void add_to(Tile& tile) const {
    u32 a[2][4];
    if constexpr (EIGHT) {
      unpack8(codes[0], codes[1], a);
      multiply<false>(tile, 0, a, x[0]);
    } else {
      const Affine low = integer_scale(affine & 255u), high = integer_scale(affine >> 8);
#pragma unroll
      for (int panel = 0; panel < PANELS; ++panel) {
        unpack4<false>(codes[panel], low, high, a);
        multiply<true>(tile, 0, a, x[panel]);
      }
    }
  }
};

// A warp's share of a stage that has `count` slots, the strip's slot `first` the first.
template <bool EIGHT>
__device__ __forceinline__ void add_stage(Tile& tile, const Tokens& x, u32 stage, int first, int count, int warp, int lane) {
  constexpr int OWN = SLOTS / WARPS;
  const u32 w = stage + lane * 16, scales = stage + SCALES_AT;
  const auto scales_of = [&](int u) { return scales + (EIGHT ? u / 2 * META8 : u * META4); };
  if constexpr (WHOLE_SUM) {
    Slot<EIGHT> slots[OWN];
    if (count == SLOTS) {
#pragma unroll
      for (int own = 0; own < OWN; ++own) {
        const int u = own * WARPS + warp;
        slots[own].load(x, w + u * 1024, scales_of(u), first + u, lane);
      }
#pragma unroll
      for (int own = 0; own < OWN; ++own) slots[own].add_to(tile);
      return;
    }
  }
  const auto add = [&](int u) {
    if constexpr (WHOLE_SUM) {
      Slot<EIGHT> slot;
      slot.load(x, w + u * 1024, scales_of(u), first + u, lane);
      slot.add_to(tile);
    } else {
      const int n = (first + u) * (EIGHT ? 1 : 2);
      accumulate<EIGHT, true>(
          tile, w + u * 1024, 0, scales_of(u), 0, [&](int panel, int j) { return x.words(n + panel, j); },
          [&](int j, int e) { return x.scale(n / 2, j, e); }, [] {}, lane);
    }
  };
  // In a row, so that a slot's loads are asked for before the sums of the one before are there.
  if (!WHOLE_SUM && count == SLOTS) {
#pragma unroll
    for (int own = 0; own < OWN; ++own) add(own * WARPS + warp);
    return;
  }
#pragma unroll 1
  for (int u = warp; u < count; u += WARPS) add(u);
}

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

__device__ __forceinline__ void consume(const Given& given, const Strips& strips, const Space& space, u8* shared, int warp,
                                        int lane) {
  wait_for_earlier_kernels();
  await_x(given, space, shared, warp, lane);
  Tokens x(product_of(given), space, 0, 0, lane);
  Turn turn;
  int pieces = 0;
  go_through(
      strips,
      [&](int x_turn, int chunk) {
        if (!CHUNKED) return;
        barrier_wait(space.base + X_FULL_AT + x_turn % 2 * 8, x_turn / 2 % 2);
        x = Tokens(product_of(given), space, x_turn, chunk, lane);
      },
      [&](const Strip& here, int, int chunk) {
        Tile tile;
        tile.clear();
        const Part part(here, chunk);
        for (int first = part.begin; first < part.end; first += SLOTS) {
          const u32 stage = space.stage(turn.stage);
          const int count = min(SLOTS, part.end - first);
          barrier_wait(space.base + FULL_AT + turn.stage * 8, turn.parity);
          if (here.eight)
            add_stage<true>(tile, x, stage, first, count, warp, lane);
          else
            add_stage<false>(tile, x, stage, first, count, warp, lane);
          __syncwarp();
          if (lane == 0) barrier_arrive(space.base + EMPTY_AT + turn.stage * 8);
          turn.next(space.stages);
        }
        const int set = pieces % 2;
        if (pieces > 1) barrier_wait(space.base + SUMS_EMPTY_AT + set * 8, (pieces / 2 - 1) % 2);
        Words4* sums = reinterpret_cast<Words4*>(shared + SUMS_AT + set * SUM_BYTES) + lane;
#pragma unroll
        for (int j = 0; j < NJ; ++j) sums[(warp * NJ + j) * 32] = tile.words(0, j);
        __syncwarp();
        if (lane == 0) barrier_arrive(space.base + SUMS_FULL_AT + set * 8);
        ++pieces;
      },
      [&](int x_turn) {
        __syncwarp();
        if (CHUNKED && lane == 0) barrier_arrive(space.base + X_EMPTY_AT + x_turn % 2 * 8);
      });
}

// All that the writing warp does.
__device__ __forceinline__ void write_all(const Arguments& p, const Strips& strips, const Space& space, u8* shared, int lane) {
  const int chunks = chunks_of(p.shape);
  // What must be known of a strip's rows is asked for while the one before is multiplied.
  Pair rows;
  const auto ask = [&](int index) {
    Strip next;
    if (strips.at(index, next)) rows = Pair(p, next.row16, next.eight, lane / 4);
  };
  ask(0);
  wait_for_earlier_kernels();
  int pieces = 0;
  go_through(
      strips, [](int, int) {},
      [&](const Strip& here, int index, int chunk) {
        const int set = pieces % 2;
        Tile tile;
        tile.clear();
        Words4* kept = reinterpret_cast<Words4*>(shared + KEPT_AT + index % BATCH * (16 * BN * 4)) + lane;
        if (CHUNKED && chunk > 0) {
#pragma unroll
          for (int j = 0; j < NJ; ++j) tile.add(0, j, kept[j * 32]);
        }
        barrier_wait(space.base + SUMS_FULL_AT + set * 8, pieces / 2 % 2);
        const Words4* sums = reinterpret_cast<const Words4*>(shared + SUMS_AT + set * SUM_BYTES) + lane;
#pragma unroll
        for (int warp = 0; warp < WARPS; ++warp)
#pragma unroll
          for (int j = 0; j < NJ; ++j) tile.add(0, j, sums[(warp * NJ + j) * 32]);
        __syncwarp();
        if (lane == 0) barrier_arrive(space.base + SUMS_EMPTY_AT + set * 8);
        ++pieces;
        if (CHUNKED && chunk + 1 < chunks) {
#pragma unroll
          for (int j = 0; j < NJ; ++j) kept[j * 32] = tile.words(0, j);
          return;
        }
        write(tile, p, rows, space.base + TABLE_AT, !here.eight, lane % 4);
        ask(index + 1);
      },
      [](int) {});
}

// Two blocks leave registers for the kernels between two products: as many as a third would have.
constexpr int REGISTER_SHARES = BLOCKS == 2 && WHOLE_SUM ? 3 : BLOCKS;

extern "C" __global__ void __launch_bounds__(THREADS, REGISTER_SHARES) mixed_gemm(const __grid_constant__ Given given) {
  extern __shared__ __align__(128) u8 shared[];
  let_next_kernel_start();
  const Arguments& p = product_of(given);
  const Space space(p, shared_address(shared));
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < MOST_STAGES; ++stage) {
      barrier_init(space.base + FULL_AT + stage * 8, 1);
      barrier_init(space.base + EMPTY_AT + stage * 8, WARPS);
    }
    for (int turn = 0; turn < 2; ++turn) {
      barrier_init(space.base + X_FULL_AT + turn * 8, 1);
      barrier_init(space.base + X_EMPTY_AT + turn * 8, WARPS);
      barrier_init(space.base + SUMS_FULL_AT + turn * 8, WARPS);
      barrier_init(space.base + SUMS_EMPTY_AT + turn * 8, 1);
    }
    barriers_made();
  }
  __syncthreads();
  const Strips strips(p.shape);
  if (warp < WARPS)
    consume(given, strips, space, shared, warp, lane);
  else if (warp == WRITER)
    write_all(p, strips, space, shared, lane);
  else if (lane == 0 && warp == FETCHER)
    fetch_all(given, strips, space);
#if CHUNK > 0
  else if (lane == 0)
    fetch_chunks(given, strips, space);
#endif
}
