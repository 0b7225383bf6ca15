// dq: one block of 128 queries of one head a CTA, four warps of 32 rows, 32 keys at a time. Also the row sums of
// dout * out, which the kernel for dk and dv reads.
#include "heads.cuh"
#include "schedule.cuh"

constexpr int KEYS = 32;
constexpr int M = 2;         // blocks of 16 rows a warp
constexpr int N = KEYS / 8;  // blocks of 8 keys

// products[m][n] = rows of `a` times keys of `b`
__device__ __forceinline__ void multiply(float products[M][N][4], const unsigned char* a_tile, const unsigned char* b_tile,
                                         int lane) {
    const Lane by_row = rows_first(lane), by_piece = pieces_first(lane);
#pragma unroll
    for (int k = 0; k < STEPS; ++k) {
        uint32_t a[M][4];
#pragma unroll
        for (int m = 0; m < M; ++m) ldmatrix_x4(a[m], by_row.at(a_tile, m * 16, k * 2));
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            uint32_t b[4];
            ldmatrix_x4(b, by_piece.at(b_tile, n * 8, k * 2));
#pragma unroll
            for (int m = 0; m < M; ++m) {
                mma(products[m][n], a[m], b[0], b[1]);
                mma(products[m][n + 1], a[m], b[2], b[3]);
            }
        }
    }
}

template <bool MASKED>
__device__ __forceinline__ void step(float dq[M][D / 8][4], const unsigned char* q, const unsigned char* dout,
                                     const KeyBuffers<KEYS>& keys, int stage, int number, float scale,
                                     const float lse[M][2], const float rowsum[M][2], float origin, int first_position,
                                     int lane) {
    float s[M][N][4] = {}, dp[M][N][4] = {};
    multiply(s, q, keys.k(stage), lane);
    multiply(dp, dout, keys.v(stage), lane);

    uint32_t ds[M][KEYS / 16][4];
#pragma unroll
    for (int n = 0; n < N; ++n) {
        const int entry = n * 8 + lane % 4 * 2;
        const float2 delta = *reinterpret_cast<const float2*>(keys.delta(stage) + entry);
        const float bias[2] = {(delta.x - origin) * LOG2E, (delta.y - origin) * LOG2E};
        int birth[2], end[2];
        if (MASKED) {
            const int2 births = positions_of(keys, number, entry);
            const int2 ends = *reinterpret_cast<const int2*>(keys.evict(stage) + entry);
            birth[0] = births.x, birth[1] = births.y, end[0] = ends.x, end[1] = ends.y;
        }
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float both[2];
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const int at_i = half * 2 + i;
                    const float p = exp2_approx(fmaf(s[m][n][at_i], scale, bias[i]) - lse[m][half]);
                    both[i] = p * (dp[m][n][at_i] - rowsum[m][half]);
                    if (MASKED) {
                        const int query = first_position + m * 16 + lane / 4 + half * 8;
                        both[i] = birth[i] <= query && query < end[i] ? both[i] : 0.0f;
                    }
                }
                ds[m][n / 2][n % 2 * 2 + half] = pack(both[0], both[1]);
            }
        }
    }

    const Lane by_row = rows_first(lane);
#pragma unroll
    for (int k = 0; k < KEYS / 16; ++k) {
#pragma unroll
        for (int n = 0; n < D / 8; n += 2) {
            uint32_t b[4];
            ldmatrix_x4_trans(b, by_row.at(keys.k(stage), k * 16, n));
#pragma unroll
            for (int m = 0; m < M; ++m) {
                mma(dq[m][n], ds[m][k], b[0], b[1]);
                mma(dq[m][n + 1], ds[m][k], b[2], b[3]);
            }
        }
    }
}

// rowsum[r] = sum of dout * out over row r of the block, to shared memory and to global memory. PIECES lanes a row.
__device__ __forceinline__ void sum_rows(float* here, float* rowsum, Rows dout, Rows out, int first_row, int query_len) {
    const int piece = threadIdx.x % PIECES;
    for (int row = threadIdx.x / PIECES; row < BLOCK_Q; row += ROWS_AT_ONCE) {
        float sum = 0.0f;
        if (first_row + row < query_len) {
            const uint4 a = *reinterpret_cast<const uint4*>(dout.at(first_row + row) + piece * 16);
            const uint4 b = *reinterpret_cast<const uint4*>(out.at(first_row + row) + piece * 16);
            const uint32_t a_words[4] = {a.x, a.y, a.z, a.w}, b_words[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                sum = fmaf(value(a_words[i] & 0xffff), value(b_words[i] & 0xffff), sum);
                sum = fmaf(value(a_words[i] >> 16), value(b_words[i] >> 16), sum);
            }
        }
#pragma unroll
        for (int other = PIECES / 2; other > 0; other /= 2) sum += __shfl_xor_sync(0xffffffff, sum, other);
        if (piece == 0) {
            here[row] = sum;
            if (first_row + row < query_len) rowsum[first_row + row] = sum;
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
dma_backward_dq(const void* q, const void* k, const void* v, const void* dout, const float* delta, const int* evict,
                const float* origins, const int* p0, const int* p1, const int* p2, const int* p3, const void* out,
                const float* relative_lse, float* rowsum,
                unsigned char* dq, long long q_batch, long long q_head, int q_row, long long k_batch, long long k_head,
                int k_row, long long v_batch, long long v_head, int v_row, long long dout_batch, long long dout_head,
                int dout_row, int kv_heads, int groups, int query_len, int key_len, int width, float scale_log2) {
    DYNAMIC_SHARED(shared);
    unsigned char* const q_tile = shared;
    unsigned char* const dout_tile = q_tile + BLOCK_Q * ROW_BYTES;
    const KeyBuffers<KEYS> keys{dout_tile + BLOCK_Q * ROW_BYTES};
    Kept<KEYS>* const kept = reinterpret_cast<Kept<KEYS>*>(keys.shared + KeyBuffers<KEYS>::BYTES);
    float* const rowsum_here = reinterpret_cast<float*>(kept + 1);

    const Sizes sizes{kv_heads, groups, query_len, key_len};
    const QueryBlock mine(sizes);
    const int first_row = mine.block * BLOCK_Q, lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 32;
    const long long bg = mine.key_head(sizes), row0 = mine.first_row(sizes);
    const Keys from{Strides{k_batch, k_head, k_row}.rows(k, mine.b, mine.g),
                    Strides{v_batch, v_head, v_row}.rows(v, mine.b, mine.g), delta + bg * key_len, evict + bg * key_len,
                    p0 + (bg * sizes.query_blocks() + mine.block) * width};
    const int last_position = sizes.offset() + min(first_row + BLOCK_Q, query_len) - 1;
    const Schedule<KEYS> schedule({p0, p1, p2, p3, width}, bg, sizes.query_blocks(), mine.block, last_position, key_len);

    if (threadIdx.x == 0) *kept = {from, schedule, row0 + first_row, first_row,
                                       origins[bg * sizes.query_blocks() + mine.block]};
    const Rows dout_rows = Strides{dout_batch, dout_head, dout_row}.rows(dout, mine.b, mine.head);
    copy_rows<BLOCK_Q>(q_tile, Strides{q_batch, q_head, q_row}.rows(q, mine.b, mine.head), first_row, query_len);
    copy_rows<BLOCK_Q>(dout_tile, dout_rows, first_row, query_len);
    int current = schedule.next(0);
#if GATHERS
    copy_positions(keys, schedule, 0, from);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    copy_positions(keys, schedule, 1, from);
#endif
    if (current < schedule.steps) copy_keys(keys, 0, schedule, current, from);
    cp_async_commit();

    sum_rows(rowsum_here, rowsum + row0, dout_rows,
             Rows{static_cast<const unsigned char*>(out) + row0 * ROW_BYTES, ROW_BYTES}, first_row, query_len);
    __syncthreads();
    float my_lse[M][2], my_rowsum[M][2], sums[M][D / 8][4] = {};
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = warp_row + m * 16 + lane / 4 + half * 8;
            // Rows past the end get probability 0; rows without a live key meet none below but masked ones.
            my_lse[m][half] = first_row + row < query_len ? relative_lse[row0 + first_row + row] : infinity();
            my_rowsum[m][half] = rowsum_here[row];
        }
    }

    for (int stage = 0, steps = schedule.steps; current < steps; stage ^= 1) {
        cp_async_wait<0>();
        __syncthreads();
        const int next = kept->schedule.next(current + 1);
        if (next < kept->schedule.steps) {
#if GATHERS
            copy_positions(keys, kept->schedule, next + 1, kept->keys);
#endif
            copy_keys(keys, stage ^ 1, kept->schedule, next, kept->keys);
        }
        cp_async_commit();
        const unsigned char *const my_q = q_tile + warp_row * ROW_BYTES, *const my_dout = dout_tile + warp_row * ROW_BYTES;
        const int first_position = sizes.offset() + kept->first_row + warp_row;
        if (kept->schedule.needs_mask(current)) {
            step<true>(sums, my_q, my_dout, keys, stage, current, scale_log2, my_lse, my_rowsum, kept->origin, first_position, lane);
        } else {
            step<false>(sums, my_q, my_dout, keys, stage, current, scale_log2, my_lse, my_rowsum, kept->origin, first_position, lane);
        }
        current = next;
        steps = kept->schedule.steps;
    }
    cp_async_wait<0>();
    __syncthreads();

#pragma unroll
    for (int m = 0; m < M; ++m) {
        const float scale = scale_log2 * LN2;
        store_rows(sums[m], scale, scale, q_tile, warp_row + m * 16, lane, [&](int within) -> unsigned char* {
            const int row = warp_row + m * 16 + within;
            return row < query_len - kept->first_row ? dq + (kept->first_of_all + row) * ROW_BYTES : nullptr;
        });
    }
}
