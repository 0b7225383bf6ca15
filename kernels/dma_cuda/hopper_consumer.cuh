// What computing warpgroups have in common, of the forward and of dq: whose rows they are, how those of queries come to
// shared memory, and their places in the rings of keys.
#pragma once
#include "hopper_block.cuh"

constexpr int COPYING_REGISTERS = 40, COMPUTING_REGISTERS = 232;

// s = a b^T: 64 rows of a tile of Q_ROWS x KEYS rows of a tile of keys
__device__ __forceinline__ void scores(float (&s)[KEYS / 2], uint64_t a_tile, uint64_t b_tile) {
#pragma unroll
    for (int i = 0; i < STEPS; ++i) {
        const int within = i % 4 * 32;
        const uint64_t a = further(a_tile, i / 4 * Q_ROWS * ROW + within), b = further(b_tile, i / 4 * KEYS * ROW + within);
        if (i == 0) wgmma_first(s, a, b);
        else wgmma_more(s, a, b);
    }
}

// sums += p b: 64 rows x KEYS in registers, KEYS rows of D columns
__device__ __forceinline__ void add_products(float (&sums)[D / 2], const uint32_t (&p)[KEYS / 4], uint64_t b_tile) {
#pragma unroll
    for (int i = 0; i < KEYS / 16; ++i) wgmma_registers(sums, p + i * 4, further(b_tile, i * 16 * ROW));
}

// What accumulators are as the first operand of the next product: no value changes its thread.
__device__ __forceinline__ void round_to(uint32_t (&p)[KEYS / 4], const float (&s)[KEYS / 2]) {
#pragma unroll
    for (int i = 0; i < KEYS / 4; ++i) p[i] = pack(s[2 * i], s[2 * i + 1]);
}

// A tensor with a row for each query.
struct Queries {
    const void* base;
    Strides strides;
};

// One computing warpgroup.
struct Consumer {
    Shared shared;
    Tasks tasks;
    int which, thread;  // of the warpgroups that compute; within it
    float scale;
    KRing k_ring;
    VRing v_ring;
    int slot = 0;

    __device__ __forceinline__ int first_row(const Task& task) const { return task.block * BLOCK_Q + (HEADS == 2 ? 0 : which * 64); }
    __device__ __forceinline__ int head(const Task& task) const { return task.head + (HEADS == 2 ? which : 0); }
    // Of [B, H]: this warpgroup's head.
    __device__ __forceinline__ long long row_of_heads(const Task& task) const {
        return static_cast<long long>(task.b) * tasks.sizes.kv_heads * tasks.sizes.groups + head(task);
    }
    // A lane's first row of a tile of 64; its second is 8 further.
    __device__ __forceinline__ int lane_row() const { return thread / 32 * 16 + thread % 32 / 4; }
    // A tile as wgmma reads it: its columns are summed over (K-major), or its rows are (MN-major).
    __device__ __forceinline__ static uint64_t by_columns(const unsigned char* tile) { return descriptor(shared_address(tile), 1 << 4); }
    __device__ __forceinline__ static uint64_t by_rows(const unsigned char* tile) { return descriptor(shared_address(tile), KEYS * ROW); }
    __device__ __forceinline__ void release(uint64_t* barrier) const {
        if (thread % 32 == 0) barrier_arrive(barrier);
    }
    __device__ __forceinline__ void wait_k() const {
        barrier_wait(shared.full_k(k_ring.index), k_ring.parity);
        fence_for_wgmma();
    }
    __device__ __forceinline__ void wait_v(const VRing& at) const {
        barrier_wait(shared.full_v(at.index), at.parity);
        fence_for_wgmma();
    }
    __device__ __forceinline__ void next_step() {
        k_ring = k_ring.next();
        v_ring = v_ring.next();
        slot = slot + 1 == SLOTS ? 0 : slot + 1;
    }

    // Start copying this warpgroup's rows of a task, when nothing reads those of the one before.
    __device__ __forceinline__ void copy_rows_of(const Queries& from, unsigned char* tile, const Task& task) const {
        Rows rows = from.strides.rows(from.base, task.b, head(task));
        const int mine = not_kept(thread), row = mine / PIECES, piece = mine % PIECES, first = first_row(task);
        unsigned char* const to = tile + piece / 8 * Q_ROWS * ROW + row * ROW + ((piece ^ row) & 7) * 16;
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
        wait_for_one_another();
    }
    __device__ __forceinline__ void wait_for_one_another() const { named_barrier_wait(1 + which, GROUP); }
};
