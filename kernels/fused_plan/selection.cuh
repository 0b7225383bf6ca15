// The rank that the `window` best of a set of keys reach, found by a block: a histogram of ranks between those of a
// sample, and then the few keys of the bin that holds the answer, compared with one another.
//
// Ranks are 64 bits, delta above position. Where deltas tie by the thousand the bin is cut again, down to positions.
#pragma once
#include "common.cuh"

constexpr int BINS = 2048;
constexpr int LOG2_BINS = 11;

// What a block passes over: keys kept from before, then those at positions [first, end).
struct Keys {
    const float* delta;
    const unsigned char* key_mask;  // or null
    const float* kept_delta;        // aligned to 16 bytes, as kept_position is
    const int* kept_position;
    int kept_count, first, end;
};

// Room for the keys kept before one place.
__device__ __forceinline__ int kept_pitch(int window) { return (window + 3) / 4 * 4; }

// Four keys; those that do not exist have an unusable delta.
struct Four {
    float4 delta;
    int4 position;
};

__device__ __forceinline__ Four load_kept(const Keys& keys, int at) {
    const int there = keys.kept_count - at;
    Four four = {{UNUSABLE, UNUSABLE, UNUSABLE, UNUSABLE}, {0, 0, 0, 0}};
    if (there <= 0) return four;
    four.delta = *reinterpret_cast<const float4*>(keys.kept_delta + at);
    four.position = *reinterpret_cast<const int4*>(keys.kept_position + at);
    if (there < 2) four.delta.y = UNUSABLE;
    if (there < 3) four.delta.z = UNUSABLE;
    if (there < 4) four.delta.w = UNUSABLE;
    return four;
}

__device__ __forceinline__ Four load_four(const Keys& keys, int at, bool aligned) {
    const float* from = keys.delta + at;
    const int there = keys.end - at;
    Four four = {{UNUSABLE, UNUSABLE, UNUSABLE, UNUSABLE}, {at, at + 1, at + 2, at + 3}};
    if (aligned && there >= 4) {
        four.delta = *reinterpret_cast<const float4*>(from);
    } else {
        if (there > 0) four.delta.x = from[0];
        if (there > 1) four.delta.y = from[1];
        if (there > 2) four.delta.z = from[2];
        if (there > 3) four.delta.w = from[3];
    }
    if (keys.key_mask != nullptr) {
        const unsigned char* mask = keys.key_mask + at;
        if (there > 0 && mask[0] == 0) four.delta.x = UNUSABLE;
        if (there > 1 && mask[1] == 0) four.delta.y = UNUSABLE;
        if (there > 2 && mask[2] == 0) four.delta.z = UNUSABLE;
        if (there > 3 && mask[3] == 0) four.delta.w = UNUSABLE;
    }
    return four;
}

// Calls visit(4 ranks) in every thread until all keys were passed, in their order from thread to thread; what does not
// exist ranks as unusable. `first` is a multiple of 4. Keys are loaded while those before them are visited.
template <int THREADS, class Visit>
__device__ __forceinline__ void pass_over(const Keys& keys, Visit&& visit) {
    constexpr int TILE = THREADS * 4;
    const bool aligned = ((uint64_t)keys.delta & 15) == 0;
    const int kept = (keys.kept_count + TILE - 1) / TILE, tiles = kept + (keys.end - keys.first + TILE - 1) / TILE;
    Four loaded = {};
#pragma unroll 1
    for (int tile = -1; tile < tiles; ++tile) {
        const Four four = loaded;
        if (tile + 1 < kept) loaded = load_kept(keys, (tile + 1) * TILE + threadIdx.x * 4);
        else if (tile + 1 < tiles) loaded = load_four(keys, keys.first + (tile + 1 - kept) * TILE + threadIdx.x * 4, aligned);
        if (tile < 0) continue;
        const uint64_t ranks[4] = {
            rank_of(four.delta.x, true, four.position.x), rank_of(four.delta.y, true, four.position.y),
            rank_of(four.delta.z, true, four.position.z), rank_of(four.delta.w, true, four.position.w)};
        visit(ranks);
    }
}

// Bins of equal width from `base` on, but that the first and the last hold all that is below and above.
struct Bins {
    uint64_t base;
    int shift;

    __device__ __forceinline__ int of(uint64_t rank) const {
        if (rank < base) return 0;
        const uint64_t bin = (rank - base) >> shift;
        return bin < BINS ? (int)bin : BINS - 1;
    }
};

__device__ __forceinline__ Bins cut(uint64_t low, uint64_t high) {
    return {low, max(0, 64 - LOG2_BINS - __clzll((long long)(high - low)))};
}

// What is known of a threshold: it is the rest-th highest of the `count` ranks in [low, high]; not yet counted: 0.
struct Range {
    uint64_t low, high;
    int rest, count;

    __device__ __forceinline__ bool holds(uint64_t rank) const { return low <= rank && rank <= high; }
};

// Two searches at a time.
template <int THREADS>
struct Selection {
    int histogram[BINS];
    uint64_t candidate[2][THREADS];
    int candidates[2];
    Range range[2];
    uint64_t answer[2];
    int sums[THREADS / 32];
    uint32_t least[THREADS / 32], most[THREADS / 32];
};

// Begins both searches for the window-th highest rank, which is NO_THRESHOLD where there are fewer; before a barrier.
template <int THREADS>
__device__ __forceinline__ void begin_search(Selection<THREADS>& s, int window) {
    if (threadIdx.x >= 2) return;
    s.range[threadIdx.x] = {NO_THRESHOLD, ~0ull, window, 0};
    s.answer[threadIdx.x] = NO_THRESHOLD;
}

// Empties the histogram and the lists of candidates; to be followed by a barrier.
template <int THREADS>
__device__ __forceinline__ void clear(Selection<THREADS>& s) {
    for (int i = threadIdx.x; i < BINS; i += THREADS) s.histogram[i] = 0;
    if (threadIdx.x < 2) s.candidates[threadIdx.x] = 0;
}

// Bins between the least and the largest delta of a sample of at most THREADS keys, evenly spread. One barrier, which
// also ends a `clear` before it.
template <int THREADS>
__device__ __forceinline__ Bins bins_of_sample(Selection<THREADS>& s, const Keys& keys) {
    const int tid = threadIdx.x, size = keys.kept_count + keys.end - keys.first;
    const int i = size <= THREADS ? tid : (int)((int64_t)tid * size / THREADS);
    uint32_t delta = 0;  // of an unusable key
    if (i < keys.kept_count) delta = rank_of(keys.kept_delta[i], true, 0) >> 32;
    else if (i < size) delta = load_rank(keys.delta, keys.key_mask, keys.first + i - keys.kept_count) >> 32;
    const uint32_t least = __reduce_min_sync(0xffffffffu, delta == 0 ? ~0u : delta);
    const uint32_t most = __reduce_max_sync(0xffffffffu, delta);
    if (tid % 32 == 0) {
        s.least[tid / 32] = least;
        s.most[tid / 32] = most;
    }
    __syncthreads();
    uint32_t low = ~0u, high = 0;
#pragma unroll
    for (int w = 0; w < THREADS / 32; ++w) {
        low = min(low, s.least[w]);
        high = max(high, s.most[w]);
    }
    if (low > high) return cut(NO_THRESHOLD, ~0ull);
    return cut((uint64_t)low << 32, ((uint64_t)high << 32) + (uint32_t)keys.end);
}

template <int THREADS, int N>
__device__ __forceinline__ void count(Selection<THREADS>& s, const Bins& bins, const Range& range, const uint64_t (&rank)[N]) {
#pragma unroll
    for (int u = 0; u < N; ++u)
        if (range.holds(rank[u])) atomicAdd(&s.histogram[bins.of(rank[u])], 1);
}

// Narrows a range down to the bin of the histogram that the answer is in, or counts nothing if fewer than `rest` are there.
// A barrier comes before and after; the histogram may be added to at once.
template <int THREADS>
__device__ __forceinline__ void narrow(Selection<THREADS>& s, const Bins& bins, int which) {
    constexpr int EACH = BINS / THREADS;  // bins a thread, from the highest down
    static_assert(EACH * THREADS == BINS, "all of them");
    Range range = s.range[which];
    int mine[EACH], sum = 0, total;
#pragma unroll
    for (int b = 0; b < EACH; ++b) sum += mine[b] = s.histogram[BINS - 1 - threadIdx.x * EACH - b];
    int before = sum_before<THREADS>(sum, total, s.sums);
    if (range.rest <= before || before + sum < range.rest) return;
    uint64_t bin = BINS - 1 - threadIdx.x * EACH;
    range.rest -= before;
#pragma unroll
    for (int b = 0; b < EACH; ++b) {
        range.count = mine[b];
        if (range.rest <= mine[b]) break;
        range.rest -= mine[b];
        --bin;
    }
    if (bin > 0) range.low = max(range.low, bins.base + (bin << bins.shift));
    if (bin < BINS - 1) range.high = min(range.high, bins.base + ((bin + 1) << bins.shift) - 1);
    s.range[which] = range;
}

// Cuts a range again until no more keys are in it than the block has threads. `pass` passes over the keys. A barrier
// comes before, and after it.
template <int THREADS, class Pass>
__device__ __forceinline__ void narrow_to_few(Selection<THREADS>& s, int which, Pass&& pass) {
    while (s.range[which].count > THREADS) {
        const Range range = s.range[which];
        const Bins bins = cut(range.low, range.high);
        clear(s);
        __syncthreads();
        pass([&](const auto& rank) { count(s, bins, range, rank); });
        __syncthreads();
        narrow(s, bins, which);
        __syncthreads();
    }
}

template <int THREADS, int N>
__device__ __forceinline__ void collect(Selection<THREADS>& s, int which, const Range& range, const uint64_t (&rank)[N]) {
    if (range.count == 0) return;
#pragma unroll
    for (int u = 0; u < N; ++u)
        if (range.holds(rank[u])) s.candidate[which][atomicAdd(&s.candidates[which], 1)] = rank[u];
}

// Writes the answer of a search whose range was collected. A barrier comes before and after.
template <int THREADS>
__device__ __forceinline__ void resolve(Selection<THREADS>& s, int which) {
    const int count = s.range[which].count;
    if (threadIdx.x >= count) return;
    const uint64_t mine = s.candidate[which][threadIdx.x];
    int above = 0;
#pragma unroll 4
    for (int i = 0; i < count; ++i) above += s.candidate[which][i] > mine;
    if (above == s.range[which].rest - 1) s.answer[which] = mine;
}
