// Forward for Hopper: a CTA has a warpgroup that copies keys and two that compute, each of them M tiles of 64 queries.
// Products are wgmma's; while those of one tile of queries run, the softmax of another is computed, as FlashAttention-3
// does it (arXiv 2407.08608). With HEADS 2 the two warpgroups are two heads that share keys: what is gathered serves both.
//
// Defined from outside: see hopper_block.cuh and hopper_copy.cuh; PINGPONG 1: the warpgroups start their products by turns.
#include "hopper_copy.cuh"
#include "hopper_softmax.cuh"

constexpr int COPYING_REGISTERS = 40, COMPUTING_REGISTERS = 232;

// s = q k^T, 64 queries x KEYS
__device__ __forceinline__ void scores(float (&s)[KEYS / 2], uint64_t q, uint64_t k) {
#pragma unroll
    for (int i = 0; i < STEPS; ++i) {
        const int within = i % 4 * 32;
        const uint64_t a = q + ((i / 4 * Q_ROWS * ROW + within) >> 4), b = k + ((i / 4 * KEYS * ROW + within) >> 4);
        if (i == 0) wgmma_first(s, a, b);
        else wgmma_more(s, a, b);
    }
}

// out += p v, 64 queries x D
__device__ __forceinline__ void values(float (&out)[D / 2], const uint32_t (&p)[KEYS / 4], uint64_t v) {
#pragma unroll
    for (int i = 0; i < KEYS / 16; ++i) wgmma_registers(out, p + i * 4, v + (i * 16 * ROW >> 4));
}

struct Queries {
    const void* q;
    Strides strides;
};

// One computing warpgroup.
struct Consumer {
    Shared shared;
    Tasks tasks;
    int which, thread;  // of the warpgroups that compute; within it
    float scale;
    uint64_t q;
    Ring ring;
    int slot = 0;

    __device__ __forceinline__ int first_row(const Task& task) const { return task.block * BLOCK_Q + (HEADS == 2 ? 0 : which * 64); }
    __device__ __forceinline__ int head(const Task& task) const { return task.head + (HEADS == 2 ? which : 0); }
    __device__ __forceinline__ uint64_t k(const Ring& at) const { return descriptor(shared_address(shared.k(at.index)), 1 << 4); }
    __device__ __forceinline__ uint64_t v(const Ring& at) const { return descriptor(shared_address(shared.v(at.index)), KEYS * ROW); }
    __device__ __forceinline__ uint64_t q_tile(int m) const { return q + (m * 64 * ROW >> 4); }
    __device__ __forceinline__ static int next_slot(int slot) { return slot + 1 == SLOTS ? 0 : slot + 1; }
    __device__ __forceinline__ void release(uint64_t* barrier) const {
        if (thread % 32 == 0) barrier_arrive(barrier);
    }
    __device__ __forceinline__ void wait_k(const Ring& at) const {
        barrier_wait(shared.full_k(at.index), at.parity);
        if (!COPIER_FENCES) fence_for_wgmma();
    }
    __device__ __forceinline__ void wait_v(const Ring& at) const {
        barrier_wait(shared.full_v(at.index), at.parity);
        if (!COPIER_FENCES) fence_for_wgmma();
    }

    // Start copying the queries of a task, when nothing reads those of the one before.
    __device__ __forceinline__ void copy_queries(const Queries& from, int number) const {
        if (number >= tasks.count()) return;
        const Task task(tasks, number);
        Rows rows = from.strides.rows(from.q, task.b, head(task));
        const int row = thread / PIECES, piece = thread % PIECES, first = first_row(task);
        unsigned char* const to = shared.q(which) + piece / 8 * Q_ROWS * ROW + row * ROW + ((piece ^ row) & 7) * 16;
        rows.base += piece * 16;
#pragma unroll
        for (int i = 0; i < Q_ROWS; i += GROUP / PIECES) {
            const int at = first + row + i;
            cp_async_16(to + i * ROW, rows.at(min(at, tasks.sizes.query_len - 1)), at < tasks.sizes.query_len);
        }
    }
    __device__ __forceinline__ void wait_for_queries() const {
        cp_async_commit();
        cp_async_wait<0>();
        fence_for_wgmma();
        named_barrier_wait(1 + which, GROUP);
    }
    __device__ __forceinline__ void copy_next_queries(const Queries& from, int number) const {
        named_barrier_wait(1 + which, GROUP);
        copy_queries(from, number + gridDim.x);
    }
    __device__ __forceinline__ void my_turn() const {
        if (PINGPONG) named_barrier_wait(1 + CONSUMERS + which, CONSUMERS * GROUP);
    }
    __device__ __forceinline__ void your_turn() const {
        if (PINGPONG) named_barrier_arrive(1 + CONSUMERS + 1 - which, CONSUMERS * GROUP);
    }

    // Tile by tile, step by step: start the next scores and this tile's product with V, which is computed beside the
    // softmax of those.
    __device__ __forceinline__ void attend(float (&out)[M][D / 2], RowState (&rows)[M], const Queries& from, int number, int query) {
        float s[KEYS / 2], factor[2];
        uint32_t p[KEYS / 4];
        wait_k(ring);
        int about = *shared.about(slot);
        wgmma_fence();
        scores(s, q_tile(0), k(ring));
        wgmma_commit();
        wgmma_wait<0>();
        settled(s);
        if (M == 1) release(shared.empty_k(ring.index));
        probabilities(s, rows[0], factor, shared.bias(slot), shared.life(slot), about & 1, scale, query);
        round_to(p, s);
        while (about & 2) about = step<false>(out, rows, s, p, about, from, number, query);
        step<true>(out, rows, s, p, about, from, number, query);
    }

    template <bool LAST>
    __device__ __forceinline__ int step(float (&out)[M][D / 2], RowState (&rows)[M], float (&s)[KEYS / 2], uint32_t (&p)[KEYS / 4],
                                        int about, const Queries& from, int number, int query) {
        if (LAST && M == 1) copy_next_queries(from, number);
        const Ring now = ring;
#pragma unroll
        for (int m = 0; m < M; ++m) {
            constexpr int LAST_TILE = M - 1;
            const int other = m == LAST_TILE ? 0 : m + 1;
            if (m == LAST_TILE) {
                ring = ring.next();
                slot = next_slot(slot);
            }
            if (m == LAST_TILE && !LAST) wait_k(ring);
            if (m == 0) wait_v(now);
            my_turn();
            wgmma_fence();
            if (m < LAST_TILE || !LAST) {
                scores(s, q_tile(other), k(ring));
                wgmma_commit();
            }
            values(out[m], p, v(now));
            wgmma_commit();
            your_turn();
            if (m == LAST_TILE && LAST) break;
            wgmma_wait<1>();
            settled(s);
            if (other == LAST_TILE) release(shared.empty_k(ring.index));
            if (LAST) copy_next_queries(from, number);
            if (m == LAST_TILE) about = *shared.about(slot);
            float factor[2];
            const bool outgrown =
                probabilities(s, rows[other], factor, shared.bias(slot), shared.life(slot), about & 1, scale, query + other * 64);
            compute_before(rows[other].sum[0] == -1.0f || rows[other].sum[1] == -1.0f);
            wgmma_wait<0>();
            settled(out[m]);
            settled(p);
            if (m == LAST_TILE) release(shared.empty_v(now.index));
            if (outgrown) rescale(out[other], factor);
            round_to(p, s);
        }
        if (LAST) {
            wgmma_wait<0>();
            settled(out[M - 1]);
            release(shared.empty_v(now.index));
        }
        return about;
    }

    __device__ __forceinline__ void compute_all(const Queries& from, const float* origins, const Targets& to) {
        q = descriptor(shared_address(shared.q(which)), 1 << 4);
        if (PINGPONG && which == 1) your_turn();
        copy_queries(from, blockIdx.x);
        for (int number = blockIdx.x; number < tasks.count(); number += gridDim.x) {
            wait_for_queries();
            float out[M][D / 2];
            RowState rows[M];
#pragma unroll
            for (int m = 0; m < M; ++m) {
                rows[m] = {{-infinity(), -infinity()}, {0.0f, 0.0f}};
#pragma unroll
                for (int i = 0; i < D / 2; ++i) out[m][i] = 0.0f;
            }
            const int within = thread / 32 * 16 + thread % 32 / 4;
            {
                const Task task(tasks, number);
                attend(out, rows, from, number, tasks.sizes.offset() + first_row(task) + within);
            }
            const Task task(tasks, number);
            const float origin = origins[task.key_head(tasks.sizes) * tasks.sizes.query_blocks() + task.block];
            const long long heads = static_cast<long long>(task.b) * tasks.sizes.kv_heads * tasks.sizes.groups + head(task);
#pragma unroll
            for (int m = 0; m < M; ++m) {
                const int row = first_row(task) + m * 64 + within;
                finish(to, out[m], rows[m], origin, heads * tasks.sizes.query_len + row, tasks.sizes.query_len - row);
            }
        }
        cp_async_commit();
        cp_async_wait<0>();
    }
};

extern "C" __global__ void __launch_bounds__((1 + CONSUMERS) * GROUP, 1)
dma_hopper_forward(const void* q, const void* k, const void* v, const float* delta, const int* evict, const float* origins,
                   const int* p0, const int* p1, const int* p2, const int* p3, unsigned char* out, float* lse,
                   float* relative_lse, long long q_batch, long long q_head, int q_row, long long k_batch, long long k_head,
                   int k_row, long long v_batch, long long v_head, int v_row, int kv_heads, int groups, int query_len,
                   int key_len, int width, int rows, float scale_log2) {
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
        Consumer consumer{shared, tasks, which, static_cast<int>(threadIdx.x) % GROUP, scale_log2};
        consumer.compute_all({q, {q_batch, q_head, q_row}}, origins, {out, lse, relative_lse});
    }
}
