// The warpgroup that copies queries: it follows the steps of each pair of tiles.
#pragma once
#include "hopper_pairs.cuh"

struct Queries {
    const void *q, *dout;
    const float *lse, *rowsum;  // [B, H, Tq]
    const float* origins;       // [B, G, blocks of BLOCK_Q queries]
    Strides q_strides, dout_strides;
};

// ROWS rows of a head from row `first` on to a tile, zeros from row `end` on, which are not read.
__device__ __forceinline__ void copy_rows_to(unsigned char* tile, const void* base, const Strides& strides, int b, int head,
                                             int first, int end) {
    const int thread = not_kept(threadIdx.x), row = thread / PIECES, piece = thread % PIECES;
    unsigned char* to = tile + piece / 8 * HALF_BYTES + row * ROW + ((piece ^ row) & 7) * 16;
    const Rows rows = strides.rows(base, b, head);
    const unsigned char* from = rows.at(first + row) + piece * 16;
    int left = end - first - row;
#pragma unroll 2
    for (int i = 0; i < ROWS * PIECES / GROUP; ++i) {
        cp_async_16(to, from, left > 0);
        to += GROUP / PIECES * ROW;
        from += static_cast<long long>(GROUP / PIECES) * rows.stride;
        left -= GROUP / PIECES;
    }
}

// lse and sums of ROWS rows of a head of [B, H]. Rows past the end get probability 0.
__device__ __forceinline__ void copy_facts(const Shared& shared, const Queries& from, int stage, int head, int first, int end) {
    const int thread = not_kept(threadIdx.x), row = thread % ROWS;
    const bool is_lse = thread < ROWS;
    float* const target = (is_lse ? shared.lse(stage) : shared.rowsum(stage)) + row;
    const float* const source = (is_lse ? from.lse : from.rowsum) + static_cast<long long>(head) * end + first + row;
    if (first + row < end) cp_async_4(target, source, true);
    else *target = is_lse ? infinity() : 0.0f;
}

// The copying warpgroup: threads 0..127 of the block.
__device__ __forceinline__ void copy_all(const Shared& shared, const Problem& problem, const Queries& from) {
    const Sizes& sizes = problem.sizes;
    Ring<STAGES> ring;
    for (int number = problem.shares.tile_of(problem.shares.start(blockIdx.x)); number < problem.shares.tiles; ++number) {
        const Part part(problem, number);
        if (!part.any) break;
        const int b = part.bg / sizes.kv_heads;
        int block = part.first_block(), head = part.bg % sizes.kv_heads * sizes.groups;
        if (part.steps > 0) head += part.first_step / part.blocks();
        for (int left = part.steps; left > 0; --left) {
            barrier_wait(shared.empty(ring.index), ring.parity ^ 1);
            const int first = block * ROWS;
            copy_rows_to(shared.q(ring.index), from.q, from.q_strides, b, head, first, sizes.query_len);
            copy_rows_to(shared.dout(ring.index), from.dout, from.dout_strides, b, head, first, sizes.query_len);
            copy_facts(shared, from, ring.index, b * sizes.kv_heads * sizes.groups + head, first, sizes.query_len);
            if (threadIdx.x == 0) {
                const float* const origins = from.origins + static_cast<long long>(part.bg) * sizes.query_blocks();
                cp_async_4(shared.origin(ring.index), origins + first / BLOCK_Q, true);
            }
            barrier_arrive_after_copies(shared.full(ring.index));
            __syncwarp();
            if (threadIdx.x % 32 == 0) barrier_arrive(shared.full(ring.index));
            ring = ring.next();
            if (++block == part.both.end) block = part.both.begin, ++head;
        }
    }
    cp_async_commit();
    cp_async_wait<0>();
}
