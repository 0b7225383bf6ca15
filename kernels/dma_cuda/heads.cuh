// Where a block's heads lie in memory. All strides are in bytes; the innermost one is that of the 16-bit values.
#pragma once
#include "tiles.cuh"

struct Strides {
    long long batch, head;
    int row;

    __device__ __forceinline__ Rows rows(const void* base, int b, int head_index) const {
        return {static_cast<const unsigned char*>(base) + b * batch + head_index * head, row};
    }
};

struct Sizes {
    int kv_heads, groups, query_len, key_len;

    __device__ __forceinline__ int query_blocks() const { return (query_len + BLOCK_Q - 1) / BLOCK_Q; }
    __device__ __forceinline__ int offset() const { return key_len - query_len; }
};

// A block of queries of one head. Consecutive CTAs are the heads that share keys; late queries, which may have most to
// do, come first.
struct QueryBlock {
    int block, b, g, head;

    __device__ __forceinline__ explicit QueryBlock(const Sizes& sizes) {
        const unsigned shared_by = gridDim.x / sizes.query_blocks();  // heads of all batches
        const unsigned row = blockIdx.x % shared_by;
        block = sizes.query_blocks() - 1 - blockIdx.x / shared_by;
        const unsigned bg = row / sizes.groups;
        b = bg / sizes.kv_heads;
        g = bg % sizes.kv_heads;
        head = g * sizes.groups + row % sizes.groups;
    }
    __device__ __forceinline__ long long key_head(const Sizes& sizes) const {
        return static_cast<long long>(b) * sizes.kv_heads + g;
    }
    // Of [B, H, Tq]: the first row of this head.
    __device__ __forceinline__ long long first_row(const Sizes& sizes) const {
        return (static_cast<long long>(b) * sizes.kv_heads * sizes.groups + head) * sizes.query_len;
    }
};
