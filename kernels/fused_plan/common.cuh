// Shared by the kernels that make a plan: what a key is ranked by, how positions are cut into chunks, sums over a block.
#pragma once

#ifndef CUDA_ON_CPU
using uint16_t = unsigned short;
using uint32_t = unsigned int;
using int64_t = long long;
using uint64_t = unsigned long long;
#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#endif

#ifdef CHUNK_KEYS
// Positions are cut into chunks of CHUNK that start where blocks of queries do, so that no block of queries straddles
// two of them: chunk k is [k * CHUNK - shift, (k + 1) * CHUNK - shift), cut to [0, T).
constexpr int CHUNK = CHUNK_KEYS;

__device__ __forceinline__ int chunk_start(int k, int shift, int T) {
    return min(max(k * CHUNK - shift, 0), T);
}
#endif

// "Every usable key outranks this": lower than the rank of any usable key, higher than that of an unusable one.
constexpr uint64_t NO_THRESHOLD = 1ull << 32;

// A key's rank: its delta, then its position, so that no two are equal and the later of equal deltas wins.
// An unusable key (padding, NaN) ranks below NO_THRESHOLD. Adding 0 makes -0.0 equal +0.0.
__device__ __forceinline__ uint64_t rank_of(float delta, bool usable, int position) {
    uint32_t bits = __float_as_uint(delta + 0.0f);
    uint32_t ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    if (!usable || delta != delta) ordered = 0;
    return (uint64_t)ordered << 32 | (uint32_t)position;
}

// The delta whose rank has this upper half.
__device__ __forceinline__ float delta_of(uint32_t ordered) {
    return __uint_as_float(ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered);
}

// A delta that makes a key unusable.
#define UNUSABLE __uint_as_float(0x7fffffffu)

__device__ __forceinline__ uint64_t load_rank(const float* delta, const unsigned char* key_mask, int position) {
    return rank_of(delta[position], key_mask == nullptr || key_mask[position] != 0, position);
}

// Sum of `value` over the threads before this one; `total` over all of them. Two barriers: `sums` (a word a warp) may be
// used again at once.
template <int THREADS>
__device__ __forceinline__ int sum_before(int value, int& total, int* sums) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    int inclusive = value;
    for (int step = 1; step < 32; step *= 2) {
        const int other = __shfl_up_sync(0xffffffffu, inclusive, step);
        if (lane >= step) inclusive += other;
    }
    if (lane == 31) sums[warp] = inclusive;
    __syncthreads();
    int before = 0;
    total = 0;
#pragma unroll
    for (int w = 0; w < THREADS / 32; ++w) {
        const int one = sums[w];
        if (w < warp) before += one;
        total += one;
    }
    __syncthreads();
    return before + inclusive - value;
}
