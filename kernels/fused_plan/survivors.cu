// Of long sequences, the keys that are alive where each stretch of positions begins: the chunks of a stretch (evictions.cu)
// then need not look at what came before it.
#include "selection.cuh"

constexpr int THREADS = 1024;

// grid (stretches - 1, heads). kept_delta, kept_position [heads, stretches - 1, kept_pitch(window)]: the keys alive where
// stretch 1, 2, ... begins, in the order of their positions; kept_count [heads, stretches - 1].
extern "C" __global__ void __launch_bounds__(THREADS)
plan_survivors(const float* __restrict__ delta, const unsigned char* __restrict__ key_mask,
               float* __restrict__ kept_delta, int* __restrict__ kept_position, int* __restrict__ kept_count, int T, int kv_heads, int window, int stretch) {
    __shared__ Selection<THREADS> s;
    const int n = blockIdx.y, which = gridDim.x - 1 - blockIdx.x;  // the longest first
    const int64_t place = (int64_t)n * gridDim.x + which;
    if (key_mask != nullptr) key_mask += (int64_t)(n / kv_heads) * T;
    const Keys keys = {delta + (int64_t)n * T, key_mask, nullptr, nullptr, 0, 0, (which + 1) * stretch};
    kept_delta += place * kept_pitch(window);
    kept_position += place * kept_pitch(window);
    const auto pass = [&](auto&& visit) { pass_over<THREADS>(keys, visit); };

    begin_search(s, window);
    if (keys.end > window) {
        clear(s);
        const Bins bins = bins_of_sample(s, keys);
        const Range everything = {NO_THRESHOLD, ~0ull, window, 0};
        pass([&](const auto& rank) { count(s, bins, everything, rank); });
        __syncthreads();
        narrow(s, bins, 0);
        __syncthreads();
        narrow_to_few(s, 0, pass);
        const Range range = s.range[0];
        pass([&](const auto& rank) { collect(s, 0, range, rank); });
        __syncthreads();
        resolve(s, 0);
    }
    __syncthreads();
    const uint64_t threshold = s.answer[0];
    int found = 0;
    pass([&](const auto& ranks) {
        int mine = 0, total;
#pragma unroll
        for (const uint64_t rank : ranks) mine += rank >= threshold;
        int at = found + sum_before<THREADS>(mine, total, s.sums);
#pragma unroll
        for (const uint64_t rank : ranks) {
            if (rank < threshold) continue;
            kept_delta[at] = delta_of((uint32_t)(rank >> 32));
            kept_position[at++] = (int)(uint32_t)rank;
        }
        found += total;
    });
    if (threadIdx.x == 0) kept_count[place] = found;
}
