// From the accumulators of a warpgroup to rows in memory, 16 bytes a lane, without a way through shared memory.
#pragma once
#include "tiles.cuh"

// words[i] of lane j of a quad becomes words[j] of lane i.
__device__ __forceinline__ void transpose_quad(uint32_t (&words)[4]) {
    const bool odd = threadIdx.x & 1, high = threadIdx.x & 2;
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const uint32_t other = __shfl_xor_sync(0xffffffff, odd ? words[i] : words[i + 1], 1);
        (odd ? words[i] : words[i + 1]) = other;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const uint32_t other = __shfl_xor_sync(0xffffffff, high ? words[i] : words[i + 2], 2);
        (high ? words[i] : words[i + 2]) = other;
    }
}

// One of the two rows of a lane of a tile of 64 rows: `half` 0 is row lane / 4 of its warp's 16, 1 is 8 further. All lanes
// of a warp take part, also those whose row does not exist.
__device__ __forceinline__ void store_row(unsigned char* row, const float (&sums)[D / 2], int half, float factor, bool exists) {
    unsigned char* const target = row + threadIdx.x % 4 * 16;
#pragma unroll
    for (int n = 0; n < D / 8; n += 4) {
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int at = (n + i) * 4 + half * 2;
            words[i] = pack(sums[at] * factor, sums[at + 1] * factor);
        }
        transpose_quad(words);
        if (exists) *reinterpret_cast<uint4*>(target + n * 16) = make_uint4(words[0], words[1], words[2], words[3]);
    }
}
