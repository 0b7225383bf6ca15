// Forward for Hopper: a CTA has a warpgroup that copies keys and two that compute, each of them M tiles of 64 queries.
// Products are wgmma's; while those of one tile of queries run, the softmax of another is computed, as FlashAttention-3
// does it (arXiv 2407.08608). With HEADS 2 the two warpgroups are two heads that share keys: what is gathered serves both.
//
// Defined from outside: see hopper_block.cuh.
constexpr int QUERY_TENSORS = 1;

#include "hopper_consumer.cuh"
#include "hopper_copy.cuh"
#include "hopper_softmax.cuh"

struct Forward : Consumer {
    __device__ __forceinline__ uint64_t q_tile(int m) const { return further(by_columns(shared.q(which)), m * 64 * ROW); }
    __device__ __forceinline__ uint64_t k() const { return by_columns(shared.k(k_ring.index)); }
    __device__ __forceinline__ uint64_t v(const VRing& at) const { return by_rows(shared.v(at.index)); }

    __device__ __forceinline__ void copy_queries(const Queries& from, int number) const {
        if (number < tasks.count()) copy_rows_of(from, shared.q(which), Task(tasks, number));
    }
    __device__ __forceinline__ void copy_next_queries(const Queries& from, int number) const {
        wait_for_one_another();
        copy_queries(from, tasks.after(number));
    }
    // Tile by tile, step by step: start the next scores and this tile's product with V, which is computed beside the
    // softmax of those.
    __device__ __forceinline__ void attend(float (&out)[M][D / 2], RowState (&rows)[M], const Queries& from, int number, int query) {
        float s[KEYS / 2], factor[2];
        uint32_t p[KEYS / 4];
        wait_k();
        int about = *shared.about(slot);
        wgmma_fence();
        scores(s, q_tile(0), k());
        wgmma_commit();
        wgmma_wait<0>();
        settled(s);
        if (M == 1) release(shared.empty_k(k_ring.index));
        probabilities(s, rows[0], factor, shared.bias(slot), shared.life(slot), about & 1, scale, query);
        round_to(p, s);
        while (about & 2) about = step<false>(out, rows, s, p, about, from, number, query);
        step<true>(out, rows, s, p, about, from, number, query);
    }

    template <bool LAST>
    __device__ __forceinline__ int step(float (&out)[M][D / 2], RowState (&rows)[M], float (&s)[KEYS / 2], uint32_t (&p)[KEYS / 4],
                                        int about, const Queries& from, int number, int query) {
        if (LAST && M == 1) copy_next_queries(from, number);
        const VRing now = v_ring;
#pragma unroll
        for (int m = 0; m < M; ++m) {
            constexpr int LAST_TILE = M - 1;
            const int other = m == LAST_TILE ? 0 : m + 1;
            if (m == LAST_TILE) next_step();
            if (m == LAST_TILE && !LAST) wait_k();
            if (m == 0) wait_v(now);
            wgmma_fence();
            if (m < LAST_TILE || !LAST) {
                scores(s, q_tile(other), k());
                wgmma_commit();
            }
            add_products(out[m], p, v(now));
            wgmma_commit();
            if (m == LAST_TILE && LAST) break;
            wgmma_wait<1>();
            settled(s);
            if (other == LAST_TILE) release(shared.empty_k(k_ring.index));
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
        copy_queries(from, blockIdx.x);
        for (int number = blockIdx.x; number < tasks.count(); number = tasks.after(number)) {
            wait_for_queries();
            float out[M][D / 2];
            RowState rows[M];
#pragma unroll
            for (int m = 0; m < M; ++m) {
                rows[m] = {{-infinity(), -infinity()}, {0.0f, 0.0f}};
#pragma unroll
                for (int i = 0; i < D / 2; ++i) out[m][i] = 0.0f;
            }
            const int within = lane_row();
            {
                const Task task(tasks, number);
                attend(out, rows, from, number, tasks.sizes.offset() + first_row(task) + within);
            }
            const Task task(tasks, number);
            const float origin = origins[task.key_head(tasks.sizes) * tasks.sizes.query_blocks() + task.block];
#pragma unroll
            for (int m = 0; m < M; ++m) {
                const int row = first_row(task) + m * 64 + within;
                finish(to, out[m], rows[m], origin, row_of_heads(task) * tasks.sizes.query_len + row, tasks.sizes.query_len - row);
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
        Forward consumer{{shared, tasks, which, static_cast<int>(threadIdx.x) % GROUP, scale_log2}};
        consumer.compute_all({q, {q_batch, q_head, q_row}}, origins, {out, lse, relative_lse});
    }
}
