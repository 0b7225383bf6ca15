// The largest delta that the first query of each block attends to: what scores are taken relative to (kernels/plan.py).
#include "common.cuh"

constexpr int THREADS = 1024;
constexpr int EACH = 4;
constexpr int BLOCK_Q = 32 * EACH;  // a warp has the positions of one block of queries
constexpr float LOWEST = -3.402823466e38f;

// grid (1, heads). delta, evict [heads, T]; references [heads, blocks].
extern "C" __global__ void __launch_bounds__(THREADS)
plan_references(const float* __restrict__ delta, const int* __restrict__ evict, float* __restrict__ references, int T,
                int query_offset, int blocks) {
    __shared__ float of_warp[THREADS / 32];
    const int n = blockIdx.y, tid = threadIdx.x, warp = tid / 32, lane = tid & 31;
    delta += (int64_t)n * T;
    evict += (int64_t)n * T;
    references += (int64_t)n * blocks;
    float before = LOWEST;
    // The first positions may be fewer than a block: those before `-start` do not exist.
    const int shift = (BLOCK_Q - query_offset % BLOCK_Q) % BLOCK_Q;
    for (int start = -shift; start < T; start += THREADS * EACH) {
        const int position = start + tid * EACH;
        float value[EACH], most = LOWEST;
#pragma unroll
        for (int u = 0; u < EACH; ++u) {
            const int j = position + u;
            value[u] = j >= 0 && j < T && evict[j] > j ? delta[j] : LOWEST;
            most = fmaxf(most, value[u]);
        }
        for (int step = 16; step > 0; step /= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, step));
        if (lane == 0) of_warp[warp] = most;
        __syncthreads();
        float so_far = before;
        for (int w = 0; w < THREADS / 32; ++w) {
            if (w == warp && lane == 0) {
                const float found = fmaxf(so_far, value[0]);
                const int block = (position - query_offset) / BLOCK_Q;
                if (position >= query_offset && block < blocks)
                    references[block] = found > LOWEST && found < -LOWEST ? found : 0.0f;
            }
            so_far = fmaxf(so_far, of_warp[w]);
        }
        before = so_far;
        __syncthreads();
    }
}
