// dk, dv and ddelta of tiles of 64 keys in the plan's order, four warps of 16 keys, over the queries that meet any of them,
// 64 at a time, of every head that shares the keys. Each key is in one tile.
//
// Tiles differ in their work up to a thousand times, so CTAs share the steps of all tiles evenly, as in Stream-K (arXiv
// 2301.03598). Where two or more share a tile they leave sums for dma_backward_join, which adds them in order: the result
// depends on the number of CTAs, never on their timing.
#include "heads.cuh"

constexpr int KEYS = 64;
constexpr int ROWS = 64;      // queries at a time
constexpr int N = ROWS / 8;   // blocks of 8 queries
constexpr int STAGE_BYTES = 2 * ROWS * ROW_BYTES + 2 * ROWS * 4 + 16;

// The queries of a step, twice, to fill one while the other is worked on.
struct QueryBuffers {
    unsigned char* shared;

    __device__ __forceinline__ unsigned char* q(int stage) const { return shared + stage * STAGE_BYTES; }
    __device__ __forceinline__ unsigned char* dout(int stage) const { return q(stage) + ROWS * ROW_BYTES; }
    __device__ __forceinline__ float* lse(int stage) const { return reinterpret_cast<float*>(q(stage) + 2 * ROWS * ROW_BYTES); }
    __device__ __forceinline__ float* rowsum(int stage) const { return lse(stage) + ROWS; }
    __device__ __forceinline__ float* origin(int stage) const { return rowsum(stage) + ROWS; }
};

// The two keys of this lane: rows lane / 4 and lane / 4 + 8 of its warp's.
struct MyKeys {
    int birth[2], evict[2];
    float delta[2];
};

struct Sums {
    float dk[D / 8][4], dv[D / 8][4], ddelta[2];
};

// products[n] = 16 rows of `a` times ROWS rows of `b`
__device__ __forceinline__ void multiply(float products[N][4], const unsigned char* a_tile, const unsigned char* b_tile,
                                         int lane) {
    const Lane by_row = rows_first(lane), by_piece = pieces_first(lane);
#pragma unroll
    for (int k = 0; k < STEPS; ++k) {
        uint32_t a[4];
        ldmatrix_x4(a, by_row.at(a_tile, 0, k * 2));
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            uint32_t b[4];
            ldmatrix_x4(b, by_piece.at(b_tile, n * 8, k * 2));
            mma(products[n], a, b[0], b[1]);
            mma(products[n + 1], a, b[2], b[3]);
        }
    }
}

// sums += weights (16 keys x ROWS queries) times the rows of a tile
__device__ __forceinline__ void accumulate(float sums[D / 8][4], const uint32_t weights[ROWS / 16][4], const unsigned char* tile,
                                           int lane) {
    const Lane by_row = rows_first(lane);
#pragma unroll
    for (int k = 0; k < ROWS / 16; ++k) {
#pragma unroll
        for (int n = 0; n < D / 8; n += 2) {
            uint32_t b[4];
            ldmatrix_x4_trans(b, by_row.at(tile, k * 16, n));
            mma(sums[n], weights[k], b[0], b[1]);
            mma(sums[n + 1], weights[k], b[2], b[3]);
        }
    }
}

template <bool MASKED>
__device__ __forceinline__ void step(Sums& sums, const unsigned char* k, const unsigned char* v, const QueryBuffers& queries,
                                     int stage, const MyKeys& keys, float scale, int first_position, int lane) {
    float s[N][4] = {}, dp[N][4] = {};
    multiply(s, k, queries.q(stage), lane);
    uint32_t p[ROWS / 16][4], ds[ROWS / 16][4];
    multiply(dp, v, queries.dout(stage), lane);
    const float origin = *queries.origin(stage);
    const float bias[2] = {(keys.delta[0] - origin) * LOG2E, (keys.delta[1] - origin) * LOG2E};
#pragma unroll
    for (int n = 0; n < N; ++n) {
        const int column = n * 8 + lane % 4 * 2;
        const float2 lse = *reinterpret_cast<const float2*>(queries.lse(stage) + column);
        const float2 rowsum = *reinterpret_cast<const float2*>(queries.rowsum(stage) + column);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float probability[2], gradient[2];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                probability[i] = exp2_approx(fmaf(s[n][half * 2 + i], scale, bias[half]) - (i ? lse.y : lse.x));
                gradient[i] = probability[i] * (dp[n][half * 2 + i] - (i ? rowsum.y : rowsum.x));
                if (MASKED) {
                    const int query = first_position + column + i;
                    const bool live = keys.birth[half] <= query && query < keys.evict[half];
                    probability[i] = live ? probability[i] : 0.0f;
                    gradient[i] = live ? gradient[i] : 0.0f;
                }
                sums.ddelta[half] += gradient[i];
            }
            p[n / 2][n % 2 * 2 + half] = pack(probability[0], probability[1]);
            ds[n / 2][n % 2 * 2 + half] = pack(gradient[0], gradient[1]);
        }
    }
    accumulate(sums.dv, p, queries.dout(stage), lane);
    accumulate(sums.dk, ds, queries.q(stage), lane);
}

struct Queries {
    const void *q, *dout;
    const float *lse, *rowsum;  // [B, H, Tq]; lse relative, in units of log 2
    const float* origins;       // [B, G, blocks of BLOCK_Q queries]: what scores and lse are relative to
    Strides q_strides, dout_strides;
};

// Start copying ROWS queries of a head; rows past the end get probability 0.
__device__ __forceinline__ void copy_queries(const QueryBuffers& to, int stage, const Queries& from, const Sizes& sizes, int b,
                                             int head, int first_row) {
    copy_rows<ROWS>(to.q(stage), from.q_strides.rows(from.q, b, head), first_row, sizes.query_len);
    copy_rows<ROWS>(to.dout(stage), from.dout_strides.rows(from.dout, b, head), first_row, sizes.query_len);
    const int row = threadIdx.x % ROWS;
    const bool valid = first_row + row < sizes.query_len, is_lse = threadIdx.x < ROWS;
    const long long at = (static_cast<long long>(b) * sizes.kv_heads * sizes.groups + head) * sizes.query_len + first_row + row;
    float* const target = (is_lse ? to.lse(stage) : to.rowsum(stage)) + row;
    if (valid) {
        cp_async_4(target, (is_lse ? from.lse : from.rowsum) + at, true);
    } else {
        *target = is_lse ? infinity() : 0.0f;
    }
    if (threadIdx.x == 0) {
        const long long bg = static_cast<long long>(b) * sizes.kv_heads + head / sizes.groups;
        cp_async_4(to.origin(stage), from.origins + bg * sizes.query_blocks() + first_row / BLOCK_Q, true);
    }
}

struct Problem {
    Sizes sizes;
    int tiles;                                         // of one head
    const int *order, *first, *last, *full_first, *full_last;
    const long long* ends;                             // steps of all tiles up to and with each, [B, G, tiles]
    long long all_tiles;
    const int* evict;
    const float* delta;
    unsigned char *dk, *dv;
    float *ddelta, scale_log2;

    // The first step of a CTA among those of all tiles.
    __device__ __forceinline__ long long start(int cta) const { return ends[all_tiles - 1] * cta / gridDim.x; }
    __device__ __forceinline__ long long begins(long long tile) const { return tile > 0 ? ends[tile - 1] : 0; }
    __device__ __forceinline__ long long tile_of(long long step) const {
        long long low = 0, high = all_tiles - 1;
        while (low < high) {
            const long long middle = (low + high) / 2;
            if (ends[middle] > step) high = middle;
            else low = middle + 1;
        }
        return low;
    }
};

// One tile, and where the block keeps it in shared memory.
struct Tile {
    long long number, bg;
    int b, g, entries;
    int* positions;

    __device__ __forceinline__ Tile(const Problem& problem, long long number, int* positions)
        : number(number), bg(number / problem.tiles), positions(positions) {
        b = bg / problem.sizes.kv_heads;
        g = bg % problem.sizes.kv_heads;
        const int first = (number - bg * problem.tiles) * KEYS;
        entries = min(KEYS, problem.sizes.key_len - first);
        if (threadIdx.x < entries) positions[threadIdx.x] = problem.order[bg * problem.sizes.key_len + first + threadIdx.x];
        __syncthreads();
    }
};

// What a block does of a tile, in shared memory, since registers are all in use. Steps are blocks [begin, end) of ROWS
// queries of the first head that shares the keys, then of the next.
struct Part {
    int first_step, steps, begin, end, full_begin, full_end;
    bool whole;
};

// Through 16 rows a warp of two tiles in shared memory, which no other warp uses.
__device__ __forceinline__ void store(const Problem& problem, const Tile& tile, const Sums& sums, unsigned char* k_tile,
                                      unsigned char* v_tile, int lane, int warp_row) {
    const long long row0 = tile.bg * problem.sizes.key_len;
    const auto target = [&](unsigned char* gradient) {
        return [=](int within) -> unsigned char* {
            const int entry = warp_row + within;
            return entry < tile.entries ? gradient + (row0 + tile.positions[entry]) * ROW_BYTES : nullptr;
        };
    };
    const float scale = problem.scale_log2 * LN2;
    store_rows(sums.dk, scale, scale, k_tile, warp_row, lane, target(problem.dk));
    store_rows(sums.dv, 1.0f, 1.0f, v_tile, warp_row, lane, target(problem.dv));
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int entry = warp_row + lane / 4 + half * 8;
        const float sum = sum_of_quad(sums.ddelta[half]);
        if (lane % 4 == 0 && entry < tile.entries) problem.ddelta[row0 + tile.positions[entry]] = sum;
    }
}

// Sums of a part of a tile, float32, each thread's own beside its neighbours'. A CTA has two places: for the tile that it
// begins in the middle of, and for the one that it does not finish.
struct Parts {
    float4* all;

    __device__ __forceinline__ float4& at(int cta, int place, int n) const {
        return all[(static_cast<long long>(cta * 2 + place) * (D / 4 + 1) + n) * THREADS + threadIdx.x];
    }
    __device__ __forceinline__ void put(int cta, int place, const Sums& sums) const {
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
            at(cta, place, n) = make_float4(sums.dk[n][0], sums.dk[n][1], sums.dk[n][2], sums.dk[n][3]);
            at(cta, place, n + D / 8) = make_float4(sums.dv[n][0], sums.dv[n][1], sums.dv[n][2], sums.dv[n][3]);
        }
        at(cta, place, D / 4) = make_float4(sums.ddelta[0], sums.ddelta[1], 0.0f, 0.0f);
    }
    __device__ __forceinline__ void add_to(Sums& sums, int cta, int place) const {
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
            const float4 dk = at(cta, place, n), dv = at(cta, place, n + D / 8);
            sums.dk[n][0] += dk.x, sums.dk[n][1] += dk.y, sums.dk[n][2] += dk.z, sums.dk[n][3] += dk.w;
            sums.dv[n][0] += dv.x, sums.dv[n][1] += dv.y, sums.dv[n][2] += dv.z, sums.dv[n][3] += dv.w;
        }
        const float4 ddelta = at(cta, place, D / 4);
        sums.ddelta[0] += ddelta.x, sums.ddelta[1] += ddelta.y;
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, 2)
dma_backward_dkdv(const void* q, const void* k, const void* v, const void* dout, const float* delta, const int* evict,
                  const int* order, const int* first, const int* last, const int* full_first, const int* full_last,
                  const long long* ends, const float* origins, const float* lse, const float* rowsum, float4* parts, unsigned char* dk,
                  unsigned char* dv, float* ddelta, long long q_batch, long long q_head, int q_row, long long k_batch,
                  long long k_head, int k_row, long long v_batch, long long v_head, int v_row, long long dout_batch,
                  long long dout_head, int dout_row, int kv_heads, int groups, int query_len, int key_len, int heads,
                  float scale_log2) {
    DYNAMIC_SHARED(shared);
    unsigned char *const k_tile = shared, *const v_tile = k_tile + KEYS * ROW_BYTES;
    const QueryBuffers queries{v_tile + KEYS * ROW_BYTES};
    int* const positions = reinterpret_cast<int*>(queries.shared + 2 * STAGE_BYTES);
    Part* const kept = reinterpret_cast<Part*>(positions + KEYS);

    const int tiles = (key_len + KEYS - 1) / KEYS;
    const Problem problem{{kv_heads, groups, query_len, key_len}, tiles, order, first, last, full_first, full_last, ends,
                          static_cast<long long>(heads) * tiles, evict, delta, dk, dv, ddelta, scale_log2};
    const Queries from{q, dout, lse, rowsum, origins, {q_batch, q_head, q_row}, {dout_batch, dout_head, dout_row}};
    const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16;

    for (long long number = problem.tile_of(problem.start(blockIdx.x)); number < problem.all_tiles; ++number) {
        __syncthreads();  // the tile before this one is read no longer
        const long long begins = problem.begins(number);
        Part part;
        part.first_step = max(problem.start(blockIdx.x), begins) - begins;
        part.steps = min(problem.start(blockIdx.x + 1), problem.ends[number]) - begins - part.first_step;
        if (part.steps <= 0) break;
        part.whole = part.steps == problem.ends[number] - begins;
        part.begin = first[number] * (BLOCK_Q / ROWS);
        part.end = min(last[number] * (BLOCK_Q / ROWS), (query_len + ROWS - 1) / ROWS);
        part.full_begin = full_first[number] * (BLOCK_Q / ROWS);
        part.full_end = full_last[number] * (BLOCK_Q / ROWS);
        if (threadIdx.x == 0) *kept = part;
        const Tile tile(problem, number, positions);
        const int b = tile.b, g = tile.g, blocks = part.end - part.begin;

        MyKeys mine;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int entry = warp_row + lane / 4 + half * 8;
            const int position = entry < tile.entries ? positions[entry] : 0;
            mine.birth[half] = position;
            mine.evict[half] = entry < tile.entries ? evict[tile.bg * key_len + position] : 0;
            mine.delta[half] = entry < tile.entries ? delta[tile.bg * key_len + position] : 0.0f;
        }

        // A tile of dead keys alone counts as one step, and has none.
        int left = blocks > 0 ? part.steps : 0, head = g * groups, block = part.begin;
        if (left > 0) {
            head += part.first_step / blocks;
            block += part.first_step % blocks;
            gather_rows<KEYS>(k_tile, Strides{k_batch, k_head, k_row}.rows(k, b, g), v_tile,
                              Strides{v_batch, v_head, v_row}.rows(v, b, g), positions, tile.entries);
            copy_queries(queries, 0, from, problem.sizes, b, head, block * ROWS);
        }
        cp_async_commit();

        Sums sums = {};
        for (int stage = 0; left > 0; stage ^= 1) {
            cp_async_wait<0>();
            __syncthreads();
            const int current = block;
            if (++block == kept->end) block = kept->begin, ++head;
            if (--left > 0) copy_queries(queries, stage ^ 1, from, problem.sizes, b, head, block * ROWS);
            cp_async_commit();
            const unsigned char *const my_k = k_tile + warp_row * ROW_BYTES, *const my_v = v_tile + warp_row * ROW_BYTES;
            const int first_position = problem.sizes.offset() + current * ROWS;
            if (kept->full_begin <= current && current < kept->full_end) {
                step<false>(sums, my_k, my_v, queries, stage, mine, scale_log2, first_position, lane);
            } else {
                step<true>(sums, my_k, my_v, queries, stage, mine, scale_log2, first_position, lane);
            }
        }
        cp_async_wait<0>();
        __syncthreads();

        if (kept->whole) {
            store(problem, tile, sums, k_tile, v_tile, lane, warp_row);
        } else {
            Parts{parts}.put(blockIdx.x, kept->first_step > 0 ? 0 : 1, sums);
        }
    }
}

// One block for each place where one CTA of the kernel above ends and the next begins: the first such place within a tile
// adds up what all CTAs found for it. Launched with as many blocks.
extern "C" __global__ void __launch_bounds__(THREADS)
dma_backward_join(const int* order, const long long* ends, float4* parts, unsigned char* dk, unsigned char* dv, float* ddelta,
                  int kv_heads, int groups, int query_len, int key_len, int heads, float scale_log2) {
    DYNAMIC_SHARED(shared);
    unsigned char *const k_tile = shared, *const v_tile = k_tile + KEYS * ROW_BYTES;
    int* const positions = reinterpret_cast<int*>(v_tile + KEYS * ROW_BYTES);

    const int tiles = (key_len + KEYS - 1) / KEYS, cta = blockIdx.x;
    const Problem problem{{kv_heads, groups, query_len, key_len}, tiles, order, nullptr, nullptr, nullptr, nullptr, ends,
                          static_cast<long long>(heads) * tiles, nullptr, nullptr, dk, dv, ddelta, scale_log2};
    if (cta == 0) return;
    const long long number = problem.tile_of(problem.start(cta)), begins = problem.begins(number);
    if (problem.start(cta) == begins || problem.start(cta - 1) > begins) return;

    Sums sums = {};
    Parts{parts}.add_to(sums, cta - 1, 1);
    for (int other = cta; other < gridDim.x && problem.start(other) < ends[number]; ++other) {
        if (problem.start(other) < problem.start(other + 1)) Parts{parts}.add_to(sums, other, 0);
    }
    const Tile tile(problem, number, positions);
    store(problem, tile, sums, k_tile, v_tile, threadIdx.x % 32, threadIdx.x / 32 * 16);
}
