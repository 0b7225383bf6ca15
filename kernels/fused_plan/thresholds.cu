// The rank of the window-th best key of each prefix that ends at a chunk's start: a radix selection a block.
//
// Ranks are 64 bits, delta above position; deltas rarely tie, so the lower half is mostly never looked at. Early on the
// answer may be given with its undecided bits zero: any number that separates the window best from the rest serves.
#include "common.cuh"

constexpr int THREADS = 512;
constexpr int BINS = 2048;
constexpr int UNROLL = 4;

// grid (chunks + 1, heads). thresholds [heads, chunks + 1]; delta [heads, T]; key_mask [batch, T] or null.
extern "C" __global__ void __launch_bounds__(THREADS)
plan_thresholds(const float* __restrict__ delta, const unsigned char* __restrict__ key_mask, uint64_t* __restrict__ thresholds,
                int T, int kv_heads, int window, int shift) {
    __shared__ int histogram[BINS];
    __shared__ int sums[THREADS / 32];
    __shared__ int chosen_bin, chosen_count, chosen_rest;
    const int k = blockIdx.x, n = blockIdx.y, tid = threadIdx.x;
    const int end = chunk_start(k, shift, T);
    uint64_t* out = thresholds + (int64_t)n * gridDim.x + k;
    if (end <= window) {
        if (tid == 0) *out = NO_THRESHOLD;
        return;
    }
    delta += (int64_t)n * T;
    if (key_mask != nullptr) key_mask += (int64_t)(n / kv_heads) * T;

    uint64_t prefix = 0;  // the decided upper bits of the answer
    int rest = window;    // how many of the keys that share them still have to be found
    int shift_bits = 64;
    while (shift_bits > 0) {
        const int bits = min(11, shift_bits > 32 ? shift_bits - 32 : shift_bits);
        const int low = shift_bits - bits;
        for (int i = tid; i < BINS; i += THREADS) histogram[i] = 0;
        if (tid == 0) chosen_bin = -1;
        __syncthreads();
        for (int start = tid; start < end; start += THREADS * UNROLL) {
            uint64_t rank[UNROLL];
#pragma unroll
            for (int u = 0; u < UNROLL; ++u) {
                const int position = start + u * THREADS;
                rank[u] = position < end ? load_rank(delta, key_mask, position) : 0;
            }
#pragma unroll
            for (int u = 0; u < UNROLL; ++u) {
                const bool same = shift_bits == 64 || rank[u] >> shift_bits == prefix;
                if (same && rank[u] >= NO_THRESHOLD) atomicAdd(&histogram[(rank[u] >> low) & ((1 << bits) - 1)], 1);
            }
        }
        __syncthreads();
        // From the highest bin down: a thread has BINS / THREADS of them.
        constexpr int EACH = BINS / THREADS;
        int mine = 0;
        for (int b = 0; b < EACH; ++b) mine += histogram[BINS - 1 - tid * EACH - b];
        int total;
        int before = sum_before<THREADS>(mine, total, sums);
        if (before < rest && rest <= before + mine) {
            for (int b = 0; b < EACH; ++b) {
                const int bin = BINS - 1 - tid * EACH - b, count = histogram[bin];
                if (before < rest && rest <= before + count) {
                    chosen_bin = bin;
                    chosen_count = count;
                    chosen_rest = rest - before;
                }
                before += count;
            }
        }
        __syncthreads();
        if (chosen_bin < 0) {  // fewer usable keys than the window
            if (tid == 0) *out = NO_THRESHOLD;
            return;
        }
        prefix = prefix << bits | (uint64_t)chosen_bin;
        shift_bits = low;
        rest = chosen_rest;
        if (chosen_rest == chosen_count) break;
        __syncthreads();
    }
    if (tid == 0) {
        const uint64_t threshold = prefix << shift_bits;
        *out = threshold < NO_THRESHOLD ? NO_THRESHOLD : threshold;
    }
}
