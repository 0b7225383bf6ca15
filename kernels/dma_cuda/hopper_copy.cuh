// The warpgroup that copies: it follows the steps of each task, gathers rows of K and V into shared memory, and tells the
// warpgroups that compute. wgmma sees what cp.async has written only after a fence: copies arrive at the barriers by
// themselves, and the computing threads fence.
#pragma once
#include "hopper_block.cuh"

// What a lane knows of the key it looks after.
struct Key {
    int position, evict;
    float delta;

    __device__ __forceinline__ void read(const float* deltas, const int* evicts) {
        evict = position < 0 ? 0 : evicts[position];  // 0: no query attends to it
        delta = position < 0 ? 0.0f : deltas[position];
    }
};

// Start copying the rows of a warp's keys: `position` is that of each lane's key; zeros where there is none.
__device__ __forceinline__ void copy_keys(unsigned char* tile, const Rows& rows, int position) {
    constexpr int AT_ONCE = 32 / PIECES;
    const int lane = threadIdx.x % 32, piece = lane % PIECES, within = lane / PIECES;
    const int first = threadIdx.x / 32 * SHARE;
    const int offset = piece / 8 * KEYS * ROW + (first + within) * ROW + ((piece & 7) ^ within) * 16;
    const unsigned char* const base = rows.base + piece * 16;
#pragma unroll D / 32  // what the few registers allow
    for (int i = 0; i < SHARE; i += AT_ONCE) {
        const int at = __shfl_sync(0xffffffff, position, i + within);
        cp_async_16(tile + (offset ^ (i & 7) * 16) + i * ROW, base + static_cast<long long>(max(at, 0)) * rows.stride, at >= 0);
    }
}

struct Sources {
    const void *k, *v;
    Strides k_strides, v_strides;
    const float *delta, *origins;
    const int* evict;
    Plan plan;
};

// The copying warpgroup: threads 0..127 of the block.
__device__ __forceinline__ void copy_all(const Shared& shared, const Tasks& tasks, const Sources& sources) {
    const int lane = threadIdx.x % 32, entry = threadIdx.x / 32 * SHARE + lane;
    KRing k_ring;
    VRing v_ring;
    int slot = 0;
    for (int number = blockIdx.x; number < tasks.count(); number = tasks.after(number)) {
        const Task task(tasks, number);
        const long long bg = task.key_head(tasks.sizes);
        const Walk walk(sources.plan, tasks.sizes, bg, task.block);
        const Rows k = sources.k_strides.rows(sources.k, task.b, task.g), v = sources.v_strides.rows(sources.v, task.b, task.g);
        const float* const delta = sources.delta + bg * tasks.sizes.key_len;
        const int* const evict = sources.evict + bg * tasks.sizes.key_len;
        const float origin = sources.origins[bg * tasks.sizes.query_blocks() + task.block];
        // A block without any key has one step without a key.
        int step = walk.next(0);
        Key key;
        key.position = lane < SHARE ? walk.position(step, entry) : -1;
        key.read(delta, evict);
        for (bool more = true; more;) {
            const int next = walk.next(step + 1);
            more = next < walk.steps;
            Key coming;
            coming.position = more && lane < SHARE ? walk.position(next, entry) : -1;

            barrier_wait(shared.empty_k(k_ring.index), k_ring.parity ^ 1);
            if (lane < SHARE) {
                shared.bias(slot)[entry] = (key.delta - origin) * LOG2E;
                shared.life(slot)[entry] = make_int2(key.position, key.evict);
            }
            if (threadIdx.x == 0) *shared.about(slot) = (step >= walk.steps || walk.needs_mask(step) ? 1 : 0) + (more ? 2 : 0);
            copy_keys(shared.k(k_ring.index), k, key.position);
            barrier_arrive_after_copies(shared.full_k(k_ring.index));
            __syncwarp();
            if (lane == 0) barrier_arrive(shared.full_k(k_ring.index));

            coming.read(delta, evict);
            barrier_wait(shared.empty_v(v_ring.index), v_ring.parity ^ 1);
            copy_keys(shared.v(v_ring.index), v, key.position);
            barrier_arrive_after_copies(shared.full_v(v_ring.index));
            k_ring = k_ring.next();
            v_ring = v_ring.next();
            slot = slot + 1 == SLOTS ? 0 : slot + 1;
            step = next;
            key = coming;
        }
    }
    cp_async_commit();
    cp_async_wait<0>();
}
