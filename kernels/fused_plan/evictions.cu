// When each key stops being attended: every key that dies within a chunk, solved in shared memory, a chunk a block.
//
// At the chunk's start `live` keys are alive, those that rank at or above its threshold. In the chunk, keys arrive; only
// arrivals at or above that threshold matter. After the a-th of them the a + live - window worst of all that have arrived
// are dead. The keys that die here are those between this chunk's threshold and the next one's. Sorted by rank, key x is
// dead from the first a at which fewer than a + live - window of the keys before it have arrived: a number that a descent
// of a wavelet matrix over the arrivals finds for all keys at once.
#include "common.cuh"

constexpr int THREADS = 512;
constexpr int EACH = CHUNK / THREADS;
constexpr int ARRIVAL_BITS = 12;  // arrivals are numbered 1..CHUNK, and 0 stands for "before the chunk"

struct Shared {
    uint64_t rank[CHUNK];        // of the keys that die here
    int time[CHUNK + 1];         // position of each arrival
    uint16_t arrival[CHUNK];     // number of the arrival at each position of the chunk, 0 for none
    uint16_t level[2][CHUNK];    // arrivals of the dying keys, in the order of two levels of the wavelet matrix
    uint16_t zeros[CHUNK + 1];   // how many of those before have a zero at the level's bit
    int sums[THREADS / 32];
    int dying;
};

extern "C" __global__ void __launch_bounds__(THREADS, 2)
plan_evictions(const float* __restrict__ delta, const unsigned char* __restrict__ key_mask,
               const uint64_t* __restrict__ thresholds, int* __restrict__ evict, int* __restrict__ alive,
               int* __restrict__ alive_count, bool* __restrict__ finite, int T, int kv_heads, int window,
               int shift, int first_listed) {
    // grid (chunks, heads). evict [heads, T]; alive [heads, chunks - first_listed, window] the positions alive at a
    // chunk's start, ascending (null: not wanted); alive_count, finite [heads, chunks].
    __shared__ Shared s;
    const int k = blockIdx.x, n = blockIdx.y, chunks = gridDim.x, tid = threadIdx.x;
    const int begin = chunk_start(k, shift, T), end = chunk_start(k + 1, shift, T);
    const uint64_t* threshold = thresholds + (int64_t)n * (chunks + 1);
    const uint64_t now = threshold[k], next = threshold[k + 1], last = threshold[chunks];
    delta += (int64_t)n * T;
    evict += (int64_t)n * T;
    if (key_mask != nullptr) key_mask += (int64_t)(n / kv_heads) * T;
    if (alive != nullptr) alive += ((int64_t)n * (chunks - first_listed) + k - first_listed) * window;
    const bool listing = alive != nullptr && k >= first_listed;
    if (tid == 0) s.dying = 0;
    __syncthreads();

    // 1. The keys before the chunk: list those alive, keep those that will die in it.
    int live = 0;
    for (int start = 0; start < begin; start += CHUNK) {
        uint64_t rank[EACH];
        int count = 0;
        load_ranks<EACH>(rank, delta, key_mask, start + tid * EACH, begin, T % EACH == 0);
#pragma unroll
        for (int u = 0; u < EACH; ++u) {
            if (rank[u] < now) continue;
            ++count;
            if (rank[u] < next) s.rank[atomicAdd(&s.dying, 1)] = rank[u];
        }
        int total;
        int place = live + sum_before<THREADS>(count, total, s.sums);
        if (listing) {
#pragma unroll
            for (int u = 0; u < EACH; ++u)
                if (rank[u] >= now) alive[place++] = start + tid * EACH + u;
        }
        live += total;
    }

    // 2. The chunk's own keys: number those that count as arrivals; the others are never attended.
    int arrivals;
    bool bad = false;
    {
        uint64_t rank[EACH];
        int count = 0;
        load_ranks<EACH>(rank, delta, key_mask, begin + tid * EACH, end, T % EACH == 0 && begin % EACH == 0);
#pragma unroll
        for (int u = 0; u < EACH; ++u) {
            const int position = begin + tid * EACH + u;
            if (position >= end) continue;
            const bool padded = key_mask != nullptr && key_mask[position] == 0;
            bad |= !padded && (__float_as_uint(delta[position]) & 0x7f800000u) == 0x7f800000u;
            count += rank[u] >= now;
        }
        int number = sum_before<THREADS>(count, arrivals, s.sums);
#pragma unroll
        for (int u = 0; u < EACH; ++u) {
            const int offset = tid * EACH + u, position = begin + offset;
            if (position >= end) continue;
            const bool arrives = rank[u] >= now;
            s.arrival[offset] = arrives ? ++number : 0;
            if (arrives) s.time[number] = position;
            if (!arrives) evict[position] = position;
            else if (rank[u] < next) s.rank[atomicAdd(&s.dying, 1)] = rank[u];
            if (arrives && rank[u] >= last) evict[position] = T;
        }
    }
    bad = __syncthreads_or(bad);
    if (tid == 0) {
        alive_count[(int64_t)n * chunks + k] = live;
        finite[(int64_t)n * chunks + k] = !bad;
    }

    // 3. Sort the dying keys by rank (bitonic; the order in which they were found does not matter then).
    const int dying = s.dying;
    if (dying == 0) return;
    int size = 1;
    while (size < dying) size *= 2;
    for (int i = dying + tid; i < size; i += THREADS) s.rank[i] = ~0ull;
    __syncthreads();
    for (int width = 2; width <= size; width *= 2) {
        for (int step = width / 2; step > 0; step /= 2) {
            for (int i = tid; i < size / 2; i += THREADS) {
                const int low = 2 * i - (i & (step - 1)), high = low + step;
                const uint64_t a = s.rank[low], b = s.rank[high];
                if ((a > b) == ((low & width) == 0)) {
                    s.rank[low] = b;
                    s.rank[high] = a;
                }
            }
            __syncthreads();
        }
    }

    // 4. Descend the wavelet matrix, highest bit first. `first` and `before` are a key's node and how many better-placed
    //    keys are in it; `below` counts the keys before x whose arrival is under `found`.
    int arrived[EACH], first[EACH], before[EACH], below[EACH], found[EACH];
#pragma unroll
    for (int u = 0; u < EACH; ++u) {
        const int x = tid * EACH + u;
        first[u] = below[u] = found[u] = 0;
        before[u] = x;
        arrived[u] = 0;
        if (x >= dying) continue;
        const int position = (int)(uint32_t)s.rank[x];
        arrived[u] = position < begin ? 0 : s.arrival[position - begin];
        s.level[0][x] = arrived[u];
    }
    __syncthreads();
    for (int bit = ARRIVAL_BITS - 1; bit >= 0; --bit) {
        const int which = (ARRIVAL_BITS - 1 - bit) & 1;
        const uint16_t* level = s.level[which];
        uint16_t* sorted = s.level[1 - which];
        int value[EACH];
        int count = 0;
#pragma unroll
        for (int u = 0; u < EACH; ++u) {
            const int x = tid * EACH + u;
            value[u] = x < dying ? level[x] : CHUNK * 2 - 1;
            count += !(value[u] >> bit & 1);
        }
        int all_zeros;
        int zeros = sum_before<THREADS>(count, all_zeros, s.sums);
#pragma unroll
        for (int u = 0; u < EACH; ++u) {
            const int x = tid * EACH + u;
            if (x < dying) {
                s.zeros[x] = zeros;
                const bool one = value[u] >> bit & 1;
                sorted[one ? all_zeros + x - zeros : zeros] = value[u];
                zeros += !one;
                if (x == dying - 1) s.zeros[dying] = zeros;
            }
        }
        __syncthreads();
#pragma unroll
        for (int u = 0; u < EACH; ++u) {
            if (tid * EACH + u >= dying) continue;
            const int start = s.zeros[first[u]], inside = s.zeros[first[u] + before[u]] - start;
            // Dead already after arrival number found + 2^bit - 1?
            const int a = found[u] + (1 << bit) - 1;
            if (below[u] + inside < a + live - window) {
                first[u] = start;
                before[u] = inside;
            } else {
                found[u] += 1 << bit;
                below[u] += inside;
                first[u] = all_zeros + first[u] - start;
                before[u] -= inside;
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int u = 0; u < EACH; ++u) {
        const int x = tid * EACH + u;
        if (x < dying) evict[(uint32_t)s.rank[x]] = s.time[max(found[u], arrived[u])];
    }
}
