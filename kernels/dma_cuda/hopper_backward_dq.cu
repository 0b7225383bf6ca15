// dq for Hopper, as the forward: a CTA has a warpgroup that copies keys and two that compute, each of them M tiles of 64
// queries, of two heads that share keys where HEADS is 2. Also the row sums of dout * out, which dk and dv need.
//
// Of a tile, s = q k^T is started before the product ds k of the tile before it, beside which s becomes p; dp = dout v^T
// after it, in whose registers ds was (all three at once are more than there are). The other warpgroup fills the gaps.
//
// Defined from outside: see hopper_block.cuh.
constexpr int QUERY_TENSORS = 2;

#include "hopper_consumer.cuh"
#include "hopper_copy.cuh"
#include "hopper_store.cuh"

// From scores to probabilities, in place; lse is that of the lane's first row. What no query attends to may become anything.
__device__ __forceinline__ void probabilities(float (&s)[KEYS / 2], const float* lse, const float* bias, float scale) {
    const int column = threadIdx.x % 4 * 2;
    const float subtracted[2] = {lse[0], lse[8]};
#pragma unroll
    for (int n = 0; n < KEYS / 8; ++n) {
        const float2 added = *reinterpret_cast<const float2*>(bias + n * 8 + column);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            s[n * 4 + i] = exp2_approx(fmaf(s[n * 4 + i], scale, i & 1 ? added.y : added.x) - subtracted[i / 2]);
        }
    }
}

// ds = p (dp - sum), in place of p; rowsum is that of the lane's first row.
__device__ __forceinline__ void gradients(float (&p)[KEYS / 2], const float (&dp)[KEYS / 2], const float* rowsum,
                                          const int2* life, bool masked, int query) {
    const int column = threadIdx.x % 4 * 2;
    const float subtracted[2] = {rowsum[0], rowsum[8]};
#pragma unroll
    for (int i = 0; i < KEYS / 2; ++i) p[i] *= dp[i] - subtracted[i / 2 % 2];
    if (masked) {
#pragma unroll
        for (int n = 0; n < KEYS / 8; ++n) {
            const int4 lives = *reinterpret_cast<const int4*>(life + n * 8 + column);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int from = i & 1 ? lives.z : lives.x, end = i & 1 ? lives.w : lives.y, at = query + i / 2 * 8;
                p[n * 4 + i] = from <= at && at < end ? p[n * 4 + i] : 0.0f;
            }
        }
    }
}

struct QuerySources {
    Queries q, dout;
    const unsigned char* out;   // contiguous
    const float* relative_lse;
};

struct DQ : Consumer {
    __device__ __forceinline__ uint64_t q_tile(int m) const { return further(by_columns(shared.q(which)), m * 64 * ROW); }
    __device__ __forceinline__ uint64_t dout_tile(int m) const { return further(by_columns(shared.dout(which)), m * 64 * ROW); }

    __device__ __forceinline__ void copy_queries(const QuerySources& from, int number) const {
        if (number >= tasks.count()) return;
        const Task task(tasks, number);
        copy_rows_of(from.q, shared.q(which), task);
        copy_rows_of(from.dout, shared.dout(which), task);
    }
    __device__ __forceinline__ void copy_next_queries(const QuerySources& from, int number) const {
        wait_for_one_another();
        copy_queries(from, tasks.after(number));
    }

    // What is known of this warpgroup's rows: their lse, and sums of dout * out, PIECES lanes a row, also to global memory.
    // Rows past the end get probability 0; rows without a live key meet none but masked ones.
    __device__ __forceinline__ void know_rows(const QuerySources& from, float* rowsum, const Task& task) const {
        constexpr int AT_ONCE = GROUP / PIECES;
        const int piece = thread % PIECES, first = first_row(task), end = tasks.sizes.query_len;
        const Rows dout = from.dout.strides.rows(from.dout.base, task.b, head(task));
        const long long row0 = row_of_heads(task) * end;
        if (thread < Q_ROWS) shared.lse(which)[thread] = first + thread < end ? from.relative_lse[row0 + first + thread] : infinity();
        float sums[Q_ROWS / AT_ONCE];
#pragma unroll
        for (int i = 0; i < Q_ROWS / AT_ONCE; ++i) {
            // Loads that depend on nothing, so that all can be under way at once.
            const int row = min(first + i * AT_ONCE + thread / PIECES, end - 1);
            const uint4 a = *reinterpret_cast<const uint4*>(dout.at(row) + piece * 16);
            const uint4 b = *reinterpret_cast<const uint4*>(from.out + (row0 + row) * ROW_BYTES + piece * 16);
            const uint32_t a_words[4] = {a.x, a.y, a.z, a.w}, b_words[4] = {b.x, b.y, b.z, b.w};
            sums[i] = 0.0f;
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                sums[i] = fmaf(value(a_words[j] & 0xffff), value(b_words[j] & 0xffff), sums[i]);
                sums[i] = fmaf(value(a_words[j] >> 16), value(b_words[j] >> 16), sums[i]);
            }
        }
#pragma unroll
        for (int i = 0; i < Q_ROWS / AT_ONCE; ++i) {
            const int within = i * AT_ONCE + thread / PIECES;
#pragma unroll
            for (int other = PIECES / 2; other > 0; other /= 2) sums[i] += __shfl_xor_sync(0xffffffff, sums[i], other);
            if (piece == 0) {
                shared.rowsum(which)[within] = sums[i];
                if (first + within < end) rowsum[row0 + first + within] = sums[i];
            }
        }
    }

    __device__ __forceinline__ void start_scores(float (&s)[KEYS / 2], int m) const {
        scores(s, q_tile(m), by_columns(shared.k(k_ring.index)));
        wgmma_commit();
    }
    __device__ __forceinline__ void become_probabilities(float (&s)[KEYS / 2], int m) const {
        probabilities(s, shared.lse(which) + m * 64 + lane_row(), shared.bias(slot), scale);
    }
    // dp of a tile, and then ds, beside what is left to do of p; that must be complete before the wait.
    __device__ __forceinline__ void finish_tile(uint32_t (&ds)[KEYS / 4], float (&p)[KEYS / 2], int m, int about,
                                                int query) const {
        float dp[KEYS / 2];
        if (m == 0) wait_v(v_ring);
        wgmma_fence();
        scores(dp, dout_tile(m), by_columns(shared.v(v_ring.index)));
        wgmma_commit();
        compute_before(never(p));
        wgmma_wait<0>();
        settled(dp);
        if (m == M - 1) release(shared.empty_v(v_ring.index));
        gradients(p, dp, shared.rowsum(which) + m * 64 + lane_row(), shared.life(slot), about & 1, query + m * 64);
        round_to(ds, p);
    }

    __device__ __forceinline__ void attend(float (&sums)[M][D / 2], const QuerySources& from,
                                           int number, int query) {
        float s[KEYS / 2];
        uint32_t ds[KEYS / 4];
        wait_k();
        int about = *shared.about(slot);
        wgmma_fence();
        start_scores(s, 0);
        wgmma_wait<0>();
        settled(s);
        become_probabilities(s, 0);
        finish_tile(ds, s, 0, about, query);
        while (about & 2) about = step<false>(sums, s, ds, about, from, number, query);
        step<true>(sums, s, ds, about, from, number, query);
    }

    // The products ds k of a step's tiles, and all before that of the tiles after the first, up to the first of the next.
    template <bool LAST>
    __device__ __forceinline__ int step(float (&sums)[M][D / 2], float (&s)[KEYS / 2],
                                        uint32_t (&ds)[KEYS / 4], int about, const QuerySources& from, int number, int query) {
        if (LAST && M == 1) copy_next_queries(from, number);
        const KRing now = k_ring;
#pragma unroll
        for (int m = 0; m < M; ++m) {
            constexpr int LAST_TILE = M - 1;
            const int other = m == LAST_TILE ? 0 : m + 1;
            if (m == LAST_TILE) next_step();
            if (m == LAST_TILE && !LAST) wait_k();
            wgmma_fence();
            if (m < LAST_TILE || !LAST) start_scores(s, other);
            add_products(sums[m], ds, by_rows(shared.k(now.index)));
            wgmma_commit();
            if (m == LAST_TILE && LAST) break;
            wgmma_wait<1>();
            settled(s);
            if (m == LAST_TILE) about = *shared.about(slot);
            become_probabilities(s, other);
            wgmma_wait<0>();
            settled(sums[m]);
            settled(ds);
            if (m == LAST_TILE) release(shared.empty_k(now.index));
            finish_tile(ds, s, other, about, query);
            if (LAST) copy_next_queries(from, number);
        }
        if (LAST) {
            wgmma_wait<0>();
            settled(sums[M - 1]);
            settled(ds);
            release(shared.empty_k(now.index));
        }
        return about;
    }

    __device__ __forceinline__ void compute_all(const QuerySources& from, float* rowsum, unsigned char* dq) {
        copy_queries(from, blockIdx.x);
        for (int number = blockIdx.x; number < tasks.count(); number = tasks.after(number)) {
            const int within = lane_row();
            float sums[M][D / 2];
            {
                const Task task(tasks, number);
                know_rows(from, rowsum, task);
                wait_for_queries();
#pragma unroll
                for (int m = 0; m < M; ++m) {
#pragma unroll
                    for (int i = 0; i < D / 2; ++i) sums[m][i] = 0.0f;
                }
                attend(sums, from, number, tasks.sizes.offset() + first_row(task) + within);
            }
            const Task task(tasks, number);
#pragma unroll
            for (int m = 0; m < M; ++m) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const int row = first_row(task) + m * 64 + within + half * 8;
                    unsigned char* const to = dq + (row_of_heads(task) * tasks.sizes.query_len + row) * ROW_BYTES;
                    store_row(to, sums[m], half, scale * LN2, row < tasks.sizes.query_len);
                }
            }
        }
        cp_async_commit();
        cp_async_wait<0>();
    }
};

extern "C" __global__ void __launch_bounds__((1 + CONSUMERS) * GROUP, 1)
dma_hopper_backward_dq(const void* q, const void* k, const void* v, const void* dout, const float* delta, const int* evict,
                       const float* origins, const int* p0, const int* p1, const int* p2, const int* p3,
                       const unsigned char* out, const float* relative_lse, float* rowsum, unsigned char* dq,
                       long long q_batch, long long q_head, int q_row, long long k_batch, long long k_head, int k_row,
                       long long v_batch, long long v_head, int v_row, long long dout_batch, long long dout_head, int dout_row,
                       int kv_heads, int groups, int query_len, int key_len, int width, int rows, float scale_log2) {
    DYNAMIC_SHARED(memory);
    const Shared shared{memory};
    const Tasks tasks{{kv_heads, groups, query_len, key_len}, rows};
    if (threadIdx.x == 0) {
        if (shared_address(memory) % 1024 != 0) __trap();
        shared.init_barriers();
    }
    __syncthreads();
    if (threadIdx.x < GROUP) {
        fewer_registers<COPYING_REGISTERS>();
        const Sources sources{k, v, {k_batch, k_head, k_row}, {v_batch, v_head, v_row}, delta, origins, evict, {p0, p1, p2, p3, width}};
        copy_all(shared, tasks, sources);
    } else {
        more_registers<COMPUTING_REGISTERS>();
        const int which = __shfl_sync(0xffffffff, static_cast<int>(threadIdx.x) / GROUP - 1, 0);  // seen to be of the warp
        DQ consumer{{shared, tasks, which, static_cast<int>(threadIdx.x) % GROUP, scale_log2}};
        consumer.compute_all({{q, {q_batch, q_head, q_row}}, {dout, {dout_batch, dout_head, dout_row}}, out, relative_lse},
                             rowsum, dq);
    }
}
