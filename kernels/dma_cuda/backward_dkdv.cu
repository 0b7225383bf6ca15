// dk, dv and ddelta: one tile of 64 keys of the plan's order a CTA, four warps of 16 keys, over the queries that meet any
// of them, 64 at a time, of every head that shares the keys. Each key is in one tile, so nothing is added to memory.
#include "heads.cuh"

constexpr int KEYS = 64;
constexpr int ROWS = 64;      // queries at a time
constexpr int N = ROWS / 8;   // blocks of 8 queries
constexpr int STAGE_BYTES = 2 * ROWS * ROW_BYTES + 2 * ROWS * 4;

// The queries of a step, twice, to fill one while the other is worked on.
struct QueryBuffers {
    unsigned char* shared;

    __device__ __forceinline__ unsigned char* q(int stage) const { return shared + stage * STAGE_BYTES; }
    __device__ __forceinline__ unsigned char* dout(int stage) const { return q(stage) + ROWS * ROW_BYTES; }
    __device__ __forceinline__ float* lse(int stage) const { return reinterpret_cast<float*>(q(stage) + 2 * ROWS * ROW_BYTES); }
    __device__ __forceinline__ float* rowsum(int stage) const { return lse(stage) + ROWS; }
};

// The two keys of this lane: rows lane / 4 and lane / 4 + 8 of its warp's.
struct MyKeys {
    int birth[2], evict[2];
    float bias[2];  // delta in units of log 2
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
                const float subtracted = (i ? lse.y : lse.x) * LOG2E;
                probability[i] = exp2_approx(fmaf(s[n][half * 2 + i], scale, keys.bias[half] - subtracted));
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
    const float *lse, *rowsum;  // [B, H, Tq]
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
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
dma_backward_dkdv(const void* q, const void* k, const void* v, const void* dout, const float* delta, const int* evict,
                  const int* order, const int* first, const int* last, const int* full_first, const int* full_last,
                  const float* lse, const float* rowsum, unsigned char* dk, unsigned char* dv, float* ddelta,
                  long long q_batch, long long q_head, int q_row, long long k_batch, long long k_head, int k_row,
                  long long v_batch, long long v_head, int v_row, long long dout_batch, long long dout_head, int dout_row,
                  int kv_heads, int groups, int query_len, int key_len, float scale_log2) {
    DYNAMIC_SHARED(shared);
    unsigned char *const k_tile = shared, *const v_tile = k_tile + KEYS * ROW_BYTES;
    const QueryBuffers queries{v_tile + KEYS * ROW_BYTES};
    int* const positions = reinterpret_cast<int*>(queries.shared + 2 * STAGE_BYTES);

    const Sizes sizes{kv_heads, groups, query_len, key_len};
    const Queries from{q, dout, lse, rowsum, {q_batch, q_head, q_row}, {dout_batch, dout_head, dout_row}};
    const int tiles = (key_len + KEYS - 1) / KEYS, tile = blockIdx.x % tiles, b = blockIdx.x / tiles / kv_heads;
    const int g = blockIdx.x / tiles % kv_heads, lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16;
    const long long bg = static_cast<long long>(b) * kv_heads + g;
    const int entries = min(KEYS, key_len - tile * KEYS);

    if (threadIdx.x < entries) positions[threadIdx.x] = order[bg * key_len + tile * KEYS + threadIdx.x];
    __syncthreads();

    MyKeys mine;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int entry = warp_row + lane / 4 + half * 8;
        const long long at = bg * key_len + (entry < entries ? positions[entry] : 0);
        mine.birth[half] = entry < entries ? positions[entry] : 0;
        mine.evict[half] = entry < entries ? evict[at] : 0;
        mine.bias[half] = entry < entries ? delta[at] * LOG2E : 0.0f;
    }

    const long long range = bg * tiles + tile;
    const int begin = first[range] * (BLOCK_Q / ROWS), end = min(last[range] * (BLOCK_Q / ROWS), (query_len + ROWS - 1) / ROWS);
    const int full_begin = full_first[range] * (BLOCK_Q / ROWS), full_end = full_last[range] * (BLOCK_Q / ROWS);
    int head = begin < end ? 0 : groups, block = begin;  // of this step

    if (head < groups) {
        gather_rows<KEYS>(k_tile, Strides{k_batch, k_head, k_row}.rows(k, b, g), v_tile,
                          Strides{v_batch, v_head, v_row}.rows(v, b, g), positions, entries);
        copy_queries(queries, 0, from, sizes, b, g * groups, block * ROWS);
    }
    cp_async_commit();

    Sums sums = {};
    for (int stage = 0; head < groups; stage ^= 1) {
        cp_async_wait<0>();
        __syncthreads();
        const int next_block = block + 1 < end ? block + 1 : begin, next_head = block + 1 < end ? head : head + 1;
        if (next_head < groups) copy_queries(queries, stage ^ 1, from, sizes, b, g * groups + next_head, next_block * ROWS);
        cp_async_commit();
        const unsigned char *const my_k = k_tile + warp_row * ROW_BYTES, *const my_v = v_tile + warp_row * ROW_BYTES;
        const int first_position = sizes.offset() + block * ROWS;
        if (full_begin <= block && block < full_end) {
            step<false>(sums, my_k, my_v, queries, stage, mine, scale_log2, first_position, lane);
        } else {
            step<true>(sums, my_k, my_v, queries, stage, mine, scale_log2, first_position, lane);
        }
        block = next_block, head = next_head;
    }
    cp_async_wait<0>();
    __syncthreads();

    const auto target = [&](unsigned char* gradient) {
        return [=](int within) -> unsigned char* {
            const int entry = warp_row + within;
            return entry < entries ? gradient + (bg * key_len + positions[entry]) * ROW_BYTES : nullptr;
        };
    };
    store_rows(sums.dk, scale_log2 * LN2, scale_log2 * LN2, k_tile, warp_row, lane, target(dk));
    store_rows(sums.dv, 1.0f, 1.0f, v_tile, warp_row, lane, target(dv));
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int entry = warp_row + lane / 4 + half * 8;
        const float sum = sum_of_quad(sums.ddelta[half]);
        if (lane % 4 == 0 && entry < entries) ddelta[bg * key_len + positions[entry]] = sum;
    }
}
