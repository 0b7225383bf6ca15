// What the warps that copy and those that compute share: blocks of queries, steps over their keys, and the shared memory
// through which keys come, K_STAGES and V_STAGES steps at a time.
//
// Defined from outside, besides what tiles.cuh asks for: KEYS_OF_STEP (64 or 128), HEADS (query heads a block computes
// at once, of those that share keys: 1 or 2), K_STAGES, V_STAGES; and before this is included QUERY_TENSORS, how many
// there are that have a row for each query (1: q; 2: q and dout).
#pragma once
#include "heads.cuh"
#include "hopper.cuh"
#include "schedule.cuh"

constexpr int KEYS = KEYS_OF_STEP;
constexpr int GROUP = 128;                // threads of a warpgroup
constexpr int CONSUMERS = 2;              // warpgroups that compute
constexpr int M = HEADS;                  // tiles of 64 queries each of them has
constexpr int Q_ROWS = M * 64;
constexpr int ROW = 128;                  // bytes of a row of shared memory: 64 columns
constexpr int HALVES = D / 64;
constexpr int SHARE = KEYS / 4;           // keys of a step that a copying warp looks after
constexpr int SLOTS = K_STAGES + 1;       // of what is known of keys, which is in use while the next K is already coming
constexpr int Q_BYTES = HALVES * Q_ROWS * ROW;
constexpr int KEY_BYTES = HALVES * KEYS * ROW;

static_assert(SHARE % 8 == 0 && SHARE <= 32, "a lane of a copying warp looks after one key");

using KRing = Ring<K_STAGES>;
using VRing = Ring<V_STAGES>;

struct Shared {
    unsigned char* base;

    __device__ __forceinline__ unsigned char* q(int consumer) const { return base + consumer * Q_BYTES; }
    __device__ __forceinline__ unsigned char* dout(int consumer) const { return q(CONSUMERS + consumer); }
    __device__ __forceinline__ unsigned char* k(int stage) const { return q(QUERY_TENSORS * CONSUMERS) + stage * KEY_BYTES; }
    __device__ __forceinline__ unsigned char* v(int stage) const { return k(K_STAGES + stage); }
    // Birth and eviction time of the keys of a slot, and their bias in units of log 2.
    __device__ __forceinline__ int2* life(int slot) const { return reinterpret_cast<int2*>(v(V_STAGES)) + slot * KEYS; }
    __device__ __forceinline__ float* bias(int slot) const { return reinterpret_cast<float*>(life(SLOTS)) + slot * KEYS; }
    __device__ __forceinline__ uint64_t* full_k(int stage) const { return reinterpret_cast<uint64_t*>(bias(SLOTS)) + stage; }
    __device__ __forceinline__ uint64_t* empty_k(int stage) const { return full_k(K_STAGES + stage); }
    __device__ __forceinline__ uint64_t* full_v(int stage) const { return full_k(2 * K_STAGES + stage); }
    __device__ __forceinline__ uint64_t* empty_v(int stage) const { return full_v(V_STAGES + stage); }
    // 1: the step needs a mask; 2: another step follows.
    __device__ __forceinline__ int* about(int slot) const { return reinterpret_cast<int*>(empty_v(V_STAGES)) + slot; }
    // Where there is dout: lse of the rows of queries, and the sums of dout * out over them.
    __device__ __forceinline__ float* lse(int consumer) const {
        return reinterpret_cast<float*>(about(SLOTS)) + consumer * Q_ROWS;
    }
    __device__ __forceinline__ float* rowsum(int consumer) const { return lse(CONSUMERS + consumer); }

    __device__ __forceinline__ void init_barriers() const {
        // Each thread that copies, when its copies are complete; of K also each warp, which has written what is known of keys.
        for (int stage = 0; stage < K_STAGES; ++stage) {
            barrier_init(full_k(stage), GROUP + GROUP / 32);
            barrier_init(empty_k(stage), CONSUMERS * GROUP / 32);
        }
        for (int stage = 0; stage < V_STAGES; ++stage) {
            barrier_init(full_v(stage), GROUP);
            barrier_init(empty_v(stage), CONSUMERS * GROUP / 32);
        }
    }
};

// 128 queries of HEADS heads that share keys. Late queries, which may have most to do, come first; the heads of one
// block of queries come one after the other, so that what they gather is still in the L2 cache.
struct Tasks {
    Sizes sizes;
    int rows;  // heads of all batches, HEADS at a time

    __device__ __forceinline__ int count() const { return rows * sizes.query_blocks(); }
    // What a CTA does after this one. CTAs take turns back and forth: who had the longest task of one turn has the
    // shortest of the next. (What is divided by is not kept: its reciprocal would take registers that there are not.)
    __device__ __forceinline__ int after(int number) const {
        const int ctas = not_kept(gridDim.x);
        return (number / ctas + 1) * 2 * ctas - 1 - number;
    }
};

struct Task {
    int block, b, g, head;  // head: the first of HEADS

    __device__ __forceinline__ Task(const Tasks& tasks, int number) {
        const int row = number % tasks.rows, pairs = tasks.sizes.groups / HEADS;
        block = tasks.sizes.query_blocks() - 1 - number / tasks.rows;
        const int bg = row / pairs;
        b = bg / tasks.sizes.kv_heads;
        g = bg % tasks.sizes.kv_heads;
        head = g * tasks.sizes.groups + row % pairs * HEADS;
    }
    __device__ __forceinline__ long long key_head(const Sizes& sizes) const {
        return static_cast<long long>(b) * sizes.kv_heads + g;
    }
};

// The steps over the keys of a block of queries: see schedule.cuh, of which this is the form for any KEYS.
struct Walk {
    int count, steps;
#if GATHERS
    const int* list;
    int full;

    __device__ __forceinline__ Walk(const Plan& plan, const Sizes& sizes, long long bg, int block) {
        const long long at = bg * sizes.query_blocks() + block;
        list = plan.p0 + at * plan.width;
        full = plan.p1[at];
        count = plan.p2[at];
        steps = (count + KEYS - 1) / KEYS;
    }
    __device__ __forceinline__ int next(int step) const { return step; }
    __device__ __forceinline__ bool needs_mask(int step) const { return (step + 1) * KEYS > full; }
#else
    const int *first, *last, *full_first, *full_last;
    int block, key_len;

    __device__ __forceinline__ Walk(const Plan& plan, const Sizes& sizes, long long bg, int block)
        : block(block), key_len(sizes.key_len) {
        first = plan.p0 + bg * plan.width;
        last = plan.p1 + bg * plan.width;
        full_first = plan.p2 + bg * plan.width;
        full_last = plan.p3 + bg * plan.width;
        count = sizes.offset() + min((block + 1) * BLOCK_Q, sizes.query_len);
        steps = (count + KEYS - 1) / KEYS;
    }
    // The tiles of a step are from..to.
    __device__ __forceinline__ int from(int step) const { return step * KEYS / TILE; }
    __device__ __forceinline__ int to(int step) const { return (min((step + 1) * KEYS, key_len) - 1) / TILE; }
    // The first step from this one on that has something to do; `steps` if there is none.
    __device__ __forceinline__ int next(int step) const {
        for (; step < steps; ++step) {
            for (int tile = from(step); tile <= to(step); ++tile) {
                if (first[tile] <= block && block < last[tile]) return step;
            }
        }
        return steps;
    }
    __device__ __forceinline__ bool needs_mask(int step) const {
        bool full = (step + 1) * KEYS <= key_len;
        for (int tile = from(step); tile <= to(step); ++tile) full &= full_first[tile] <= block && block < full_last[tile];
        return !full;
    }
#endif
    // Of an entry of a step; -1 where there is none.
    __device__ __forceinline__ int position(int step, int entry) const {
        const int at = step * KEYS + entry;
        if (step >= steps || at >= count) return -1;
#if GATHERS
        return list[at];
#else
        return at;
#endif
    }
};
