// When each key stops being attended: every key that dies within a chunk, solved by a block in shared memory.
//
// At the chunk's start the `window` best keys before it are alive; its own keys that outrank the worst of them arrive.
// After the a-th arrival the a + live - window worst of all are dead. Those that die in the chunk are below the window-th
// best key of all up to the chunk's end. Sorted by rank, key x is dead from the first a at which fewer than
// a + live - window of the keys before it have arrived: a number that a descent of a wavelet matrix over the arrivals
// finds for all keys at once.
//
// A key is written by one block: that of the chunk in which it dies, which may be its own; of the last where it survives.
#include "selection.cuh"
#include "sorting.cuh"

constexpr int THREADS = 512;
constexpr int EACH = CHUNK / THREADS;  // of the chunk's keys
constexpr int WARPS = THREADS / 32;
constexpr int WORDS = CHUNK / 32;
constexpr int BLOCK_Q = 128;
static_assert(EACH * THREADS == CHUNK && CHUNK % BLOCK_Q == 0 && WORDS <= 64, "whole warps, two words a lane at most");

struct Word {
    uint32_t zeros;    // of 32 keys those with a zero at the level's bit
    int zeros_before;  // in the words before
};

struct Descent {
    uint16_t level[2][CHUNK];    // arrivals of the dying keys, in the order of two levels of the wavelet matrix
    Word words[2][WORDS + 1];
};

struct Shared {
    Keys before;            // the chunk
    uint64_t dying[CHUNK];  // the keys that die here: delta above, below it the key's number among those alive or arriving
    int time[CHUNK + 1];    // position of each arrival, which are numbered from 1
    int dying_count;
    int sums[WARPS];
    uint32_t most[WARPS], first_most[CHUNK / BLOCK_Q];
    union {
        Selection<THREADS> selection;
        Descent descent;
    };
};

__device__ __forceinline__ int zeros_before(const Word* words, int x) {
    const Word word = words[x / 32];
    return word.zeros_before + __popc(word.zeros & ((1u << x % 32) - 1));
}

// The largest delta up to a position as a float; 0 if there is none or it is infinite.
__device__ __forceinline__ float reference_of(uint32_t ordered) {
    const float delta = delta_of(ordered);
    return ordered != 0 && (__float_as_uint(delta) & 0x7f800000u) != 0x7f800000u ? delta : 0.0f;
}

// The window-th best rank before the chunk, and that of all up to its end, in s.selection.answer.
__device__ __forceinline__ void find_thresholds(Shared& s, const uint64_t (&own)[EACH], int end,
                                                int window) {
    Selection<THREADS>& found = s.selection;
    const auto pass = [&](auto&& visit) { pass_over<THREADS>(s.before, visit); };
    clear(found);
    Keys all = s.before;
    all.end = end;
    const Bins bins = bins_of_sample(found, all);
    const Range everything = {NO_THRESHOLD, ~0ull, window, 0};
    pass([&](const auto& rank) { count(found, bins, everything, rank); });
    __syncthreads();
    if (s.before.end > window) narrow(found, bins, 0);
    count(found, bins, everything, own);
    __syncthreads();
    narrow(found, bins, 1);
    __syncthreads();
#pragma unroll 1
    for (int which = 0; which < 2; ++which)
        narrow_to_few(found, which, [&](auto&& visit) {
            pass(visit);
            if (which == 1) visit(own);
        });
    const Range now = found.range[0], next = found.range[1];
    pass([&](const auto& rank) {
        collect(found, 0, now, rank);
        collect(found, 1, next, rank);
    });
    collect(found, 1, next, own);
    __syncthreads();
#pragma unroll 1
    for (int which = 0; which < 2; ++which) resolve(found, which);
    __syncthreads();
}

// The number of the arrival that a dying key is, 0 for one from before the chunk.
__device__ __forceinline__ int arrival_of(uint64_t dying, int first_arrival) {
    return max((int)(uint32_t)dying - first_arrival + 1, 0);
}

// Calls tell(x, the arrival at which the x-th of the sorted dying keys dies, if not before at its own). `spare` is how many
// arrivals are too few for anyone to die.
template <class Tell>
__device__ __forceinline__ void descend(Shared& s, int dying, int first_arrival, int arrivals, int spare, Tell&& tell) {
    const int tid = threadIdx.x, lane = tid & 31, warp = tid / 32;
    constexpr int PER_LANE = WORDS > 32 ? 2 : 1;
    Descent& d = s.descent;
    int found[EACH];
    int first[EACH], before[EACH], below[EACH];  // a key's node, the better-placed keys in it; `below` has the others
#pragma unroll
    for (int u = 0; u < EACH; ++u) {
        const int x = u * THREADS + tid;
        first[u] = below[u] = found[u] = 0;
        before[u] = x;
        if (x < dying) d.level[0][x] = arrival_of(s.dying[x], first_arrival);
    }
    __syncthreads();
    int which = 0;
#pragma unroll 1
    for (int bit = 31 - __clz(arrivals); bit >= 0; --bit, which ^= 1) {
        Word* words = d.words[which];
        int value[EACH];
#pragma unroll
        for (int u = 0; u < EACH; ++u) {
            const int x = u * THREADS + tid;
            value[u] = x < dying ? d.level[which][x] : ~0;
            const uint32_t zeros = __ballot_sync(0xffffffffu, !(value[u] >> bit & 1));
            if (lane == 0) words[x / 32].zeros = zeros;
        }
        __syncthreads();
        // Every warp sums up all words, and keeps what is before its own.
        int zeros[PER_LANE], sum = 0;
#pragma unroll
        for (int p = 0; p < PER_LANE; ++p) {
            const int w = lane * PER_LANE + p;
            sum += zeros[p] = w < WORDS ? __popc(words[w].zeros) : 0;
        }
        int inclusive = sum;
#pragma unroll
        for (int step = 1; step < 32; step *= 2) {
            const int other = __shfl_up_sync(0xffffffffu, inclusive, step);
            if (lane >= step) inclusive += other;
        }
        const int all_zeros = __shfl_sync(0xffffffffu, inclusive, 31);
#pragma unroll
        for (int u = 0; u < EACH; ++u) {
            const int x = u * THREADS + tid, w = u * WARPS + warp;
            int zeros_so_far = __shfl_sync(0xffffffffu, inclusive - sum, w / PER_LANE);
            if (PER_LANE == 2) {
                const int one_more = __shfl_sync(0xffffffffu, zeros[0], w / PER_LANE);
                if (w % PER_LANE == 1) zeros_so_far += one_more;
            }
            if (lane == 0) words[w].zeros_before = zeros_so_far;
            if (x >= dying) continue;
            zeros_so_far += __popc(words[w].zeros & ((1u << lane) - 1));
            d.level[1 - which][value[u] >> bit & 1 ? all_zeros + x - zeros_so_far : zeros_so_far] = value[u];
        }
        if (tid == 0) words[WORDS] = {0, all_zeros};
        __syncthreads();
#pragma unroll
        for (int u = 0; u < EACH; ++u) {
            if (u * THREADS + tid >= dying) continue;
            const int start = zeros_before(words, first[u]);
            const int inside = zeros_before(words, first[u] + before[u]) - start;
            // Dead already after arrival number found + 2^bit - 1?
            if (below[u] + inside < found[u] + (1 << bit) - 1 - spare) {
                first[u] = start;
                before[u] = inside;
            } else {
                found[u] += 1 << bit;
                below[u] += inside;
                first[u] += all_zeros - start;
                before[u] -= inside;
            }
        }
    }
#pragma unroll
    for (int u = 0; u < EACH; ++u)
        if (u * THREADS + tid < dying) tell(u * THREADS + tid, found[u]);
}

// grid (chunks, heads). kept_*: of plan_survivors, whose stretches are of `stretch` positions, or null. Out:
//   evict [heads, T], alive_count and finite [heads, chunks];
//   alive [heads, chunks - first_listed, window]: of each key alive at a chunk's start, in their order, its position and
//     where it dies if that is in the chunk, else a number beyond T (null: not wanted);
//   references [heads, query blocks]: the largest delta up to the first query of each block.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
plan_evictions(const float* __restrict__ delta, const unsigned char* __restrict__ key_mask,
               const float* __restrict__ kept_delta, const int* __restrict__ kept_position,
               const int* __restrict__ kept_count, int* __restrict__ evict, int2* __restrict__ alive,
               int* __restrict__ alive_count, bool* __restrict__ finite, float* __restrict__ references, int T, int kv_heads,
               int window, int shift, int first_listed, int stretch, int query_offset) {
    __shared__ Shared s;
    const int chunks = gridDim.x, k = chunks - 1 - blockIdx.x, n = blockIdx.y, tid = threadIdx.x;  // the longest first
    const int begin = chunk_start(k, shift, T), end = chunk_start(k + 1, shift, T);
    const bool has_queries = k >= first_listed, listing = alive != nullptr && has_queries, last = k == chunks - 1;
    delta += (int64_t)n * T;
    evict += (int64_t)n * T;
    if (key_mask != nullptr) key_mask += (int64_t)(n / kv_heads) * T;
    int2* const listed = alive + ((int64_t)n * (chunks - first_listed) + k - first_listed) * window;
    if (tid == 0) {
        s.dying_count = 0;
        s.before = {delta, key_mask, nullptr, nullptr, 0, 0, begin};
        if (kept_count != nullptr && begin >= stretch) {
            const int64_t place = (int64_t)n * ((T - 1) / stretch) + begin / stretch - 1;
            s.before.kept_delta = kept_delta + place * kept_pitch(window);
            s.before.kept_position = kept_position + place * kept_pitch(window);
            s.before.kept_count = kept_count[place];
            s.before.first = begin / stretch * stretch;
        }
    }

    uint64_t own[EACH];
    bool bad = false;
#pragma unroll
    for (int u = 0; u < EACH; ++u) {
        const int position = begin + tid * EACH + u;
        own[u] = 0;
        if (position >= end) continue;
        const bool real = key_mask == nullptr || key_mask[position] != 0;
        const float one = delta[position];
        own[u] = rank_of(one, real, position);
        bad |= real && (__float_as_uint(one) & 0x7f800000u) == 0x7f800000u;
    }
    bad = __syncthreads_or(bad);
    if (tid == 0) finite[(int64_t)n * chunks + k] = !bad;
    begin_search(s.selection, window);
    if (end > window) find_thresholds(s, own, end, window);
    else __syncthreads();
    const uint64_t now = s.selection.answer[0], next = s.selection.answer[1];

    // The keys before the chunk: list those alive, keep those that will die in it.
    int live = 0;
    uint32_t most = 0;
    pass_over<THREADS>(s.before, [&](const auto& ranks) {
        int mine = 0, total;
#pragma unroll
        for (const uint64_t rank : ranks) mine += rank >= now;
        int place = live + sum_before<THREADS>(mine, total, s.sums);
#pragma unroll
        for (const uint64_t rank : ranks) {
            if (rank < now) continue;
            const int position = (int)(uint32_t)rank;
            most = max(most, (uint32_t)(rank >> 32));
            if (listing) listed[place] = {position, 0x7fffffff};
            if (rank < next)
                s.dying[atomicAdd(&s.dying_count, 1)] = rank >> 32 << 32 | (uint32_t)(listing ? place : position);
            else if (last) evict[position] = T;
            ++place;
        }
        live += total;
    });
    const int first_arrival = listing ? live : s.before.end;  // its number

    // The chunk's own keys: number those that arrive; the others are never attended.
    int mine = 0, arrivals;
    uint32_t own_most = 0;
#pragma unroll
    for (int u = 0; u < EACH; ++u) {
        if (own[u] < now) continue;
        ++mine;
        own_most = max(own_most, (uint32_t)(own[u] >> 32));
    }
    most = __reduce_max_sync(0xffffffffu, most);
    own_most = __reduce_max_sync(0xffffffffu, own_most);
    int arrival = sum_before<THREADS>(mine, arrivals, s.sums);
#pragma unroll
    for (int u = 0; u < EACH; ++u) {
        const int position = s.before.end + tid * EACH + u;
        if (position >= end) continue;
        if (own[u] < now) {
            evict[position] = position;
            continue;
        }
        if (own[u] < next)
            s.dying[atomicAdd(&s.dying_count, 1)] = own[u] >> 32 << 32 | (uint32_t)(first_arrival + arrival);
        else if (last) evict[position] = T;
        s.time[++arrival] = position;
    }
    // Before a block of queries come whole warps of the chunk's keys, and its first query's own key.
    if (tid % 32 == 0) {
        s.most[tid / 32] = own_most;
        s.sums[tid / 32] = most;
    }
    if (tid % (BLOCK_Q / EACH) == 0) s.first_most[tid * EACH / BLOCK_Q] = own[0] >= now ? own[0] >> 32 : 0;
    __syncthreads();
    if (has_queries && tid < CHUNK / BLOCK_Q && s.before.end + tid * BLOCK_Q < end) {
        uint32_t so_far = s.first_most[tid];
        for (int w = 0; w < WARPS; ++w) {
            so_far = max(so_far, (uint32_t)s.sums[w]);
            if (w < tid * BLOCK_Q / (32 * EACH)) so_far = max(so_far, s.most[w]);
        }
        const int blocks = (T - query_offset + BLOCK_Q - 1) / BLOCK_Q;
        references[(int64_t)n * blocks + (s.before.end - query_offset) / BLOCK_Q + tid] = reference_of(so_far);
    }
    if (tid == 0) alive_count[(int64_t)n * chunks + k] = live;

    const int dying = s.dying_count;
    if (dying == 0) return;
    int size = 1;
    while (size < dying) size *= 2;
    for (int i = dying + tid; i < size; i += THREADS) s.dying[i] = ~0ull;
    __syncthreads();
    sort_shared<THREADS, EACH>(s.dying, size, size);
    descend(s, dying, first_arrival, arrivals, window - live, [&](int x, int found) {
        const int number = (int)(uint32_t)s.dying[x], arrived = arrival_of(s.dying[x], first_arrival);
        const int time = s.time[max(found, arrived)];
        if (arrived > 0) {
            evict[s.time[arrived]] = time;
        } else if (listing) {
            evict[listed[number].x] = time;
            listed[number].y = time;
        } else {
            evict[number] = time;
        }
    });
}
