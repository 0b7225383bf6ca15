// Which keys a block of queries visits, KEYS at a time, and how they come to shared memory.
//
// GATHERS 1: the block has a list of key positions (kernels/key_lists.py), those that need no mask first. The positions
// of a step arrive two steps ahead, so that the rows which they name can be asked for one step ahead.
// GATHERS 0: steps are keys in the order of their positions; the plan's ranges say which query blocks a tile touches.
#pragma once
#include "tiles.cuh"

struct Plan {
    const int *p0, *p1, *p2, *p3;  // GATHERS: keys, full, count, null; else first, last, full_first, full_last
    int width;                     // GATHERS: entries of one list; else tiles of TILE keys of one head
};

constexpr int TILE = 64;

template <int KEYS>
struct Schedule {
#if GATHERS
    int full, count, steps;

    __device__ Schedule(const Plan& plan, long long bg, int query_blocks, int block, int last_position, int key_len) {
        full = plan.p1[bg * query_blocks + block];
        count = plan.p2[bg * query_blocks + block];
        steps = (count + KEYS - 1) / KEYS;
    }
    __device__ __forceinline__ int next(int step) const { return step; }
    __device__ __forceinline__ bool needs_mask(int step) const { return (step + 1) * KEYS > full; }
#else
    const int *first, *last, *full_first, *full_last;
    int block, count, steps;

    __device__ Schedule(const Plan& plan, long long bg, int query_blocks, int block, int last_position, int key_len)
        : block(block), count(key_len) {
        first = plan.p0 + bg * plan.width;
        last = plan.p1 + bg * plan.width;
        full_first = plan.p2 + bg * plan.width;
        full_last = plan.p3 + bg * plan.width;
        steps = last_position / KEYS + 1;
    }
    // The first step from this one on that has something to do; `steps` if there is none.
    __device__ __forceinline__ int next(int step) const {
        while (step < steps) {
            const int tile = step * KEYS / TILE;
            if (first[tile] <= block && block < last[tile]) break;
            step = (tile + 1) * (TILE / KEYS);
        }
        return step < steps ? step : steps;
    }
    __device__ __forceinline__ bool needs_mask(int step) const {
        const int tile = step * KEYS / TILE;
        return block < full_first[tile] || full_last[tile] <= block;
    }
#endif
};

// The shared memory of a step, twice, to fill one while the other is worked on.
template <int KEYS>
struct KeyBuffers {
    static constexpr int TILE_BYTES = KEYS * ROW_BYTES;
    static constexpr int BYTES = 4 * TILE_BYTES + 7 * KEYS * 4;
    unsigned char* shared;

    __device__ __forceinline__ unsigned char* k(int stage) const { return shared + stage * TILE_BYTES; }
    __device__ __forceinline__ unsigned char* v(int stage) const { return shared + (2 + stage) * TILE_BYTES; }
    __device__ __forceinline__ float* delta(int stage) const {
        return reinterpret_cast<float*>(shared + 4 * TILE_BYTES) + stage * KEYS;
    }
    __device__ __forceinline__ int* evict(int stage) const {
        return reinterpret_cast<int*>(shared + 4 * TILE_BYTES) + (2 + stage) * KEYS;
    }
    // Positions outlive the stage by one step, so there are three of them.
    __device__ __forceinline__ int* positions(int step) const {
        return reinterpret_cast<int*>(shared + 4 * TILE_BYTES) + (4 + step % 3) * KEYS;
    }
};

struct Keys {
    Rows k, v;
    const float* delta;
    const int* evict;
    const int* list;  // GATHERS: the positions that the block visits
};

// What a block needs again in every step or at its end: read from shared memory, since registers are all in use.
template <int KEYS>
struct Kept {
    Keys keys;
    Schedule<KEYS> schedule;
    long long first_of_all;  // of the rows of [B, H, Tq]: the first one of the block
    int first_row;           // of its head
    float origin;            // what the block's scores are relative to
};

#if GATHERS
// Lists have room for whole steps, and what lies there past `count` is never used as an address.
template <int KEYS>
__device__ __forceinline__ void copy_positions(const KeyBuffers<KEYS>& to, const Schedule<KEYS>& schedule, int step,
                                               const Keys& from) {
    if (step < schedule.steps && threadIdx.x < KEYS / 4) {
        cp_async_16(to.positions(step) + threadIdx.x * 4, from.list + step * KEYS + threadIdx.x * 4, true);
    }
}
#endif

// Start copying a step's keys; where there is no key, delta is 0 and evict is 0, which no query attends to.
template <int KEYS>
__device__ __forceinline__ void copy_keys(const KeyBuffers<KEYS>& to, int stage, const Schedule<KEYS>& schedule, int step,
                                          const Keys& from) {
    const int end = schedule.count - step * KEYS;
    const int entry = threadIdx.x % KEYS, kind = threadIdx.x / KEYS;
    const bool valid = entry < end;
#if GATHERS
    gather_rows<KEYS>(to.k(stage), from.k, to.v(stage), from.v, to.positions(step), end);
    const int position = valid ? to.positions(step)[entry] : 0;
#else
    copy_rows<KEYS>(to.k(stage), from.k, step * KEYS, schedule.count);
    copy_rows<KEYS>(to.v(stage), from.v, step * KEYS, schedule.count);
    const int position = valid ? step * KEYS + entry : 0;
#endif
    if (kind == 0) cp_async_4(to.evict(stage) + entry, from.evict + position, valid);
    if (kind == 1) cp_async_4(to.delta(stage) + entry, from.delta + position, valid);
}

// The positions of entries `entry` (even) and `entry` + 1 of a step; anything where evict is 0.
template <int KEYS>
__device__ __forceinline__ int2 positions_of(const KeyBuffers<KEYS>& buffers, int step, int entry) {
#if GATHERS
    return *reinterpret_cast<const int2*>(buffers.positions(step) + entry);
#else
    return make_int2(step * KEYS + entry, step * KEYS + entry + 1);
#endif
}
