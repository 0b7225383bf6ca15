// Softmax of a tile of 64 queries over steps of keys, as it lies in the registers of a warpgroup, and its way to memory.
#pragma once
#include "hopper_block.cuh"
#include "hopper_store.cuh"

constexpr float SLACK = 8.0f;  // as in forward.cu

__device__ __forceinline__ float finite(float reference) { return reference == -infinity() ? 0.0f : reference; }

// Of rows lane / 4 and lane / 4 + 8 of a warp's 16 of a tile.
struct RowState {
    float reference[2], sum[2];
};

// From scores to probabilities, in place. True if what was summed so far has to be multiplied by `factor`.
__device__ __forceinline__ bool probabilities(float (&s)[KEYS / 2], RowState& rows, float (&factor)[2], const float* bias,
                                              const int2* life, bool masked, float scale, int query) {
    const int column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int n = 0; n < KEYS / 8; ++n) {
        const float2 added = *reinterpret_cast<const float2*>(bias + n * 8 + column);
#pragma unroll
        for (int i = 0; i < 4; ++i) s[n * 4 + i] = fmaf(s[n * 4 + i], scale, i & 1 ? added.y : added.x);
    }
    if (masked) {
#pragma unroll
        for (int n = 0; n < KEYS / 8; ++n) {
            const int4 lives = *reinterpret_cast<const int4*>(life + n * 8 + column);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int from = i & 1 ? lives.z : lives.x, end = i & 1 ? lives.w : lives.y, at = query + i / 2 * 8;
                s[n * 4 + i] = from <= at && at < end ? s[n * 4 + i] : -infinity();
            }
        }
    }
    float largest[2];
    bool outgrown = false;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float mine = s[half * 2];
#pragma unroll
        for (int n = 0; n < KEYS / 8; ++n) mine = fmaxf(mine, fmaxf(s[n * 4 + half * 2], s[n * 4 + half * 2 + 1]));
        largest[half] = max_of_quad(mine);
        outgrown |= largest[half] > rows.reference[half] + SLACK;
        factor[half] = 1.0f;
    }
    outgrown = __any_sync(0xffffffff, outgrown);
    if (outgrown) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float reference = fmaxf(rows.reference[half], largest[half]);
            factor[half] = exp2_approx(rows.reference[half] - finite(reference));
            rows.reference[half] = reference;
            rows.sum[half] *= factor[half];
        }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float subtracted = finite(rows.reference[half]);
        float sum = 0.0f;
#pragma unroll
        for (int n = 0; n < KEYS / 8; ++n) {
            const int i = n * 4 + half * 2;
            s[i] = exp2_approx(s[i] - subtracted);
            s[i + 1] = exp2_approx(s[i + 1] - subtracted);
            sum += s[i] + s[i + 1];
        }
        rows.sum[half] += sum;
    }
    return outgrown;
}

__device__ __forceinline__ void rescale(float (&out)[D / 2], const float (&factor)[2]) {
#pragma unroll
    for (int i = 0; i < D / 2; ++i) out[i] *= factor[i / 2 % 2];
}

struct Targets {
    unsigned char* out;
    float *lse, *relative_lse;
};

// The two rows of a lane of a tile; `row` of [B, H, Tq] is that of the first, `left` rows exist from there on.
__device__ __forceinline__ void finish(const Targets& to, const float (&out)[D / 2], const RowState& rows, float origin,
                                       long long row, int left) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float sum = sum_of_quad(rows.sum[half]);
        const float factor = sum > 0.0f ? 1.0f / sum : 0.0f;
        const bool exists = half * 8 < left;
        if (lane % 4 == 0 && exists) {
            const float relative = sum > 0.0f ? rows.reference[half] + log2f(sum) : -infinity();
            to.relative_lse[row + half * 8] = relative;
            to.lse[row + half * 8] = relative * LN2 + origin;
        }
        store_row(to.out + (row + half * 8) * ROW_BYTES, out, half, factor, exists);
    }
}
