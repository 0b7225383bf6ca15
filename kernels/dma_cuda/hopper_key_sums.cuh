// Sums of dk, dv and ddelta as they lie in the registers of the warpgroups that compute, and their ways to memory: as parts of
// a pair of tiles, or whole.
#pragma once
#include "hopper_pairs.cuh"
#include "hopper_store.cuh"

struct Sums {
    float dk[D / 2], dv[D / 2], ddelta[2];
};

// Sums of a part of a pair, float32, each thread's own beside its neighbours'. A CTA has two places: for the pair that it
// begins in the middle of, and for the one that it does not finish. `thread`: of those that compute.
struct Parts {
    float4* all;
    int thread;

    __device__ __forceinline__ float4& at(int cta, int place, int n) const {
        return all[(static_cast<long long>(cta * 2 + place) * (D / 4 + 1) + n) * (CONSUMERS * GROUP) + thread];
    }
    __device__ __forceinline__ void put(int cta, int place, const Sums& sums) const {
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
            at(cta, place, n) = make_float4(sums.dk[n * 4], sums.dk[n * 4 + 1], sums.dk[n * 4 + 2], sums.dk[n * 4 + 3]);
            at(cta, place, n + D / 8) = make_float4(sums.dv[n * 4], sums.dv[n * 4 + 1], sums.dv[n * 4 + 2], sums.dv[n * 4 + 3]);
        }
        at(cta, place, D / 4) = make_float4(sums.ddelta[0], sums.ddelta[1], 0.0f, 0.0f);
    }
    __device__ __forceinline__ void add_to(Sums& sums, int cta, int place) const {
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
            const float4 dk = at(cta, place, n), dv = at(cta, place, n + D / 8);
            sums.dk[n * 4] += dk.x, sums.dk[n * 4 + 1] += dk.y, sums.dk[n * 4 + 2] += dk.z, sums.dk[n * 4 + 3] += dk.w;
            sums.dv[n * 4] += dv.x, sums.dv[n * 4 + 1] += dv.y, sums.dv[n * 4 + 2] += dv.z, sums.dv[n * 4 + 3] += dv.w;
        }
        const float4 ddelta = at(cta, place, D / 4);
        sums.ddelta[0] += ddelta.x, sums.ddelta[1] += ddelta.y;
    }
};

struct Gradients {
    unsigned char *dk, *dv;
    float* ddelta;

    // The lane's two keys are at these positions of head bg; -1: none.
    __device__ __forceinline__ void store(const Sums& sums, const int (&positions)[2], long long bg, int key_len, float scale) const {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const bool exists = positions[half] >= 0;
            const long long row = bg * key_len + max(positions[half], 0);
            store_row(dk + row * ROW_BYTES, sums.dk, half, scale, exists);
            store_row(dv + row * ROW_BYTES, sums.dv, half, 1.0f, exists);
            const float sum = sum_of_quad(sums.ddelta[half]);
            if (threadIdx.x % 4 == 0 && exists) ddelta[row] = sum;
        }
    }
};

// The entry of its tile that a lane's row `half` is: thread is that of the warpgroup.
__device__ __forceinline__ int entry_of(int thread, int half) { return thread / 32 * 16 + thread % 32 / 4 + half * 8; }
