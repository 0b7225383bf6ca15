// dk, dv and ddelta for Hopper: a CTA takes two tiles of 64 keys that follow one another in the plan's order, a computing
// warpgroup each, over the queries that meet any key of either, 64 at a time, of every head that shares the keys. Another
// warpgroup copies the queries. Scores are computed transposed, s = k q^T and dp = v dout^T, so that p and ds are in the
// registers where dv += p dout and dk += ds q take them from.
//
// The product dp of a step is started when dv and dk of the step before are complete, and s when those are started: all at
// once take more registers than there are. What is computed of s is computed beside dp.
//
// CTAs share the steps of all pairs of tiles: shares.cuh. Where two or more share a pair they leave sums for
// dma_hopper_backward_join, which adds them in order.
//
// Defined from outside: see hopper_pairs.cuh.
#include "hopper_copy_queries.cuh"
#include "hopper_key_sums.cuh"

constexpr int COPYING_REGISTERS = 56, COMPUTING_REGISTERS = 224;

// s = a b^T: 64 rows each
__device__ __forceinline__ void scores(float (&s)[ROWS / 2], const unsigned char* a_tile, const unsigned char* b_tile) {
    const uint64_t a = descriptor(shared_address(a_tile), 1 << 4), b = descriptor(shared_address(b_tile), 1 << 4);
#pragma unroll
    for (int i = 0; i < STEPS; ++i) {
        const int offset = i / 4 * HALF_BYTES + i % 4 * 32;
        if (i == 0) wgmma_first(s, further(a, offset), further(b, offset));
        else wgmma_more(s, further(a, offset), further(b, offset));
    }
}

// sums += p b: 64 keys x ROWS queries in registers, ROWS queries x D
__device__ __forceinline__ void add_products(float (&sums)[D / 2], const uint32_t (&p)[ROWS / 4], const unsigned char* b_tile) {
    const uint64_t b = descriptor(shared_address(b_tile), HALF_BYTES);
#pragma unroll
    for (int i = 0; i < ROWS / 16; ++i) wgmma_registers(sums, p + i * 4, further(b, i * 16 * ROW));
}

// One computing warpgroup.
struct Consumer {
    Shared shared;
    Problem problem;
    int which, thread;  // of the warpgroups that compute; within it
    float scale;
    Ring<STAGES> ring;

    __device__ __forceinline__ void wait_for_one_another() const { named_barrier_wait(1 + which, GROUP); }
    __device__ __forceinline__ void wait() const {
        barrier_wait(shared.full(ring.index), ring.parity);
        fence_for_wgmma();
    }
    __device__ __forceinline__ void release(int stage) const {
        if (thread % 32 == 0) barrier_arrive(shared.empty(stage));
    }

    // This warpgroup's keys to shared memory: where they are, and their rows of K and V.
    __device__ __forceinline__ void copy_keys(const Part& part, const Rows& k, const Rows& v) const {
        const int first = (part.pair * 2 + which) * TILE;
        wait_for_one_another();  // what was there is read no longer
        if (thread < TILE) {
            const int at = first + thread;
            shared.positions(which)[thread] = at < problem.sizes.key_len ? problem.order[static_cast<long long>(part.bg) * problem.sizes.key_len + at] : -1;
        }
        wait_for_one_another();
        const int row = thread / PIECES, piece = thread % PIECES;
        const int offset = piece / 8 * HALF_BYTES + row * ROW + ((piece ^ row) & 7) * 16;
        if (part.steps > 0) {
#pragma unroll
            for (int i = 0; i < TILE; i += GROUP / PIECES) {
                const int position = shared.positions(which)[i + row];
                const bool exists = position >= 0;
                cp_async_16(shared.k(which) + offset + i * ROW, k.at(max(position, 0)) + piece * 16, exists);
                cp_async_16(shared.v(which) + offset + i * ROW, v.at(max(position, 0)) + piece * 16, exists);
            }
        }
        cp_async_commit();
        cp_async_wait<0>();
        fence_for_wgmma();
        wait_for_one_another();
    }

    // The lane's two keys.
    struct Keys {
        int birth[2], evict[2];
        float delta[2];
    };

    // From scores to probabilities, in place. What a key is not attended by may become anything.
    __device__ __forceinline__ void probabilities(float (&s)[ROWS / 2], const Keys& keys, int stage) const {
        const int column = threadIdx.x % 4 * 2;
        const float origin = *shared.origin(stage);
        const float bias[2] = {(keys.delta[0] - origin) * LOG2E, (keys.delta[1] - origin) * LOG2E};
#pragma unroll
        for (int n = 0; n < ROWS / 8; ++n) {
            const float2 lse = *reinterpret_cast<const float2*>(shared.lse(stage) + n * 8 + column);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                s[n * 4 + i] = exp2_approx(fmaf(s[n * 4 + i], scale, bias[i / 2]) - (i & 1 ? lse.y : lse.x));
            }
        }
    }

    // ds = p (dp - sum of the row), in place of dp, and what ddelta gains of it; p 0 where the key is not attended.
    __device__ __forceinline__ void gradients(float (&p)[ROWS / 2], float (&dp)[ROWS / 2], float (&ddelta)[2], const Keys& keys,
                                              int stage, bool masked, int first_query) const {
        const int column = threadIdx.x % 4 * 2;
#pragma unroll
        for (int n = 0; n < ROWS / 8; ++n) {
            const float2 sum = *reinterpret_cast<const float2*>(shared.rowsum(stage) + n * 8 + column);
#pragma unroll
            for (int i = 0; i < 4; ++i) dp[n * 4 + i] = p[n * 4 + i] * (dp[n * 4 + i] - (i & 1 ? sum.y : sum.x));
        }
        if (masked) {
#pragma unroll
            for (int i = 0; i < ROWS / 2; ++i) {
                const int query = first_query + i / 4 * 8 + column + i % 2, half = i / 2 % 2;
                const bool live = keys.birth[half] <= query && query < keys.evict[half];
                p[i] = live ? p[i] : 0.0f;
                dp[i] = live ? dp[i] : 0.0f;
            }
        }
#pragma unroll
        for (int i = 0; i < ROWS / 2; ++i) ddelta[i / 2 % 2] += dp[i];
    }

    __device__ __forceinline__ static void round_to(uint32_t (&to)[ROWS / 4], const float (&from)[ROWS / 2]) {
#pragma unroll
        for (int i = 0; i < ROWS / 4; ++i) to[i] = pack(from[2 * i], from[2 * i + 1]);
    }

    // All steps of a part. Those in which this tile meets no query are only told to be over.
    __device__ __forceinline__ void add_up(Sums& sums, const Part& part, const Keys& keys) {
        const int tile = part.pair * 2 + which;
        const Range own = range_of(problem, part.bg, tile);
        Range full = {0, 0};
        if (tile < problem.tiles) {
            const int at = part.bg * problem.tiles + tile;
            full = {problem.full_first[at] * (BLOCK_Q / ROWS), problem.full_last[at] * (BLOCK_Q / ROWS)};
        }
        int left = part.steps, block = part.first_block();
        float s[ROWS / 2], dp[ROWS / 2];
        const auto advance = [&] {
            ring = ring.next();
            if (++block == part.both.end) block = part.both.begin;
            --left;
        };
        const auto meets = [&] { return left > 0 && own.begin <= block && block < own.end; };
        // From here to the next step that has something to do; false if there is none.
        const auto find = [&] {
            while (left > 0 && !meets()) {
                barrier_wait(shared.full(ring.index), ring.parity);
                release(ring.index);
                advance();
            }
            return left > 0;
        };
        const auto start_scores = [&] {
            wait();
            wgmma_fence();
            scores(s, shared.k(which), shared.q(ring.index));
            wgmma_commit();
        };
        bool going = find();
        if (going) {
            start_scores();
            wgmma_wait<0>();
            settled(s);
        }
        while (going) {
            const int stage = ring.index;
            wgmma_fence();
            scores(dp, shared.v(which), shared.dout(stage));
            wgmma_commit();
            probabilities(s, keys, stage);
            compute_before(never(s));
            wgmma_wait<0>();
            settled(dp);
            const bool masked = block < full.begin || full.end <= block;
            gradients(s, dp, sums.ddelta, keys, stage, masked, problem.sizes.offset() + block * ROWS);
            uint32_t p[ROWS / 4], ds[ROWS / 4];
            round_to(p, s);
            round_to(ds, dp);
            wgmma_fence();
            add_products(sums.dv, p, shared.dout(stage));
            add_products(sums.dk, ds, shared.q(stage));
            wgmma_commit();
            advance();
            const bool more = meets();
            if (more) start_scores();
            wgmma_wait<0>();
            settled(sums.dv);
            settled(sums.dk);
            settled(p);
            settled(ds);
            settled(s);
            release(stage);
            if (!more) {
                going = find();
                if (going) {
                    start_scores();
                    wgmma_wait<0>();
                    settled(s);
                }
            }
        }
    }

    __device__ __forceinline__ void compute_all(const void* k, const void* v, const Strides& k_strides, const Strides& v_strides,
                                                const float* delta, const int* evict, float4* parts, const Gradients& to) {
        const int key_len = problem.sizes.key_len;
        for (int number = problem.shares.tile_of(problem.shares.start(blockIdx.x)); number < problem.shares.tiles; ++number) {
            const Part part(problem, number);
            if (!part.any) break;
            const int b = part.bg / problem.sizes.kv_heads, g = part.bg % problem.sizes.kv_heads;
            copy_keys(part, k_strides.rows(k, b, g), v_strides.rows(v, b, g));
            Keys keys;
            Sums sums;
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int position = shared.positions(which)[entry_of(thread, half)];
                const long long at = static_cast<long long>(part.bg) * key_len + max(position, 0);
                keys.birth[half] = position;
                keys.evict[half] = position >= 0 ? evict[at] : 0;  // 0: no query attends to it
                keys.delta[half] = position >= 0 ? delta[at] : 0.0f;
                sums.ddelta[half] = 0.0f;
            }
#pragma unroll
            for (int i = 0; i < D / 2; ++i) sums.dk[i] = sums.dv[i] = 0.0f;
            add_up(sums, part, keys);
            if (part.whole) {
                const int* const positions = shared.positions(which);
                const int mine[2] = {positions[entry_of(thread, 0)], positions[entry_of(thread, 1)]};
                to.store(sums, mine, part.bg, key_len, scale * LN2);
            } else {
                Parts{parts, which * GROUP + thread}.put(blockIdx.x, part.first_step > 0 ? 0 : 1, sums);
            }
        }
    }
};

extern "C" __global__ void __launch_bounds__((1 + CONSUMERS) * GROUP, 1)
dma_hopper_backward_dkdv(const void* q, const void* k, const void* v, const void* dout, const float* delta, const int* evict,
                         const int* order, const int* first, const int* last, const int* full_first, const int* full_last,
                         const long long* ends, const float* origins, const float* lse, const float* rowsum, float4* parts,
                         unsigned char* dk, unsigned char* dv, float* ddelta, long long q_batch, long long q_head, int q_row,
                         long long k_batch, long long k_head, int k_row, long long v_batch, long long v_head, int v_row,
                         long long dout_batch, long long dout_head, int dout_row, int kv_heads, int groups, int query_len,
                         int key_len, int heads, float scale_log2) {
    DYNAMIC_SHARED(memory);
    const Shared shared{memory};
    const int tiles = (key_len + TILE - 1) / TILE;
    const Problem problem{{kv_heads, groups, query_len, key_len}, {ends, heads * ((tiles + 1) / 2)},
                          tiles, order, first, last, full_first, full_last};
    if (threadIdx.x == 0) {
        if (shared_address(memory) % 1024 != 0) __trap();
        shared.init_barriers();
    }
    __syncthreads();
    if (threadIdx.x < GROUP) {
        fewer_registers<COPYING_REGISTERS>();
        copy_all(shared, problem, {q, dout, lse, rowsum, origins, {q_batch, q_head, q_row}, {dout_batch, dout_head, dout_row}});
    } else {
        more_registers<COMPUTING_REGISTERS>();
        const int which = __shfl_sync(0xffffffff, static_cast<int>(threadIdx.x) / GROUP - 1, 0);  // seen to be of the warp
        Consumer consumer{shared, problem, which, static_cast<int>(threadIdx.x) % GROUP, scale_log2};
        consumer.compute_all(k, v, {k_batch, k_head, k_row}, {v_batch, v_head, v_row}, delta, evict, parts, {dk, dv, ddelta});
    }
}

// One block for each place where one CTA of the kernel above ends and the next begins: the first such place within a pair
// adds up what all CTAs found for it. Launched with as many blocks.
extern "C" __global__ void __launch_bounds__(CONSUMERS * GROUP)
dma_hopper_backward_join(const int* order, const long long* ends, float4* parts, unsigned char* dk, unsigned char* dv,
                         float* ddelta, int kv_heads, int groups, int query_len, int key_len, int heads, float scale_log2) {
    const int tiles = (key_len + TILE - 1) / TILE, pairs = (tiles + 1) / 2, cta = blockIdx.x;
    const Shares shares{ends, heads * pairs};
    if (cta == 0) return;
    const int number = shares.tile_of(shares.start(cta));
    const long long begins = shares.begins(number);
    if (shares.start(cta) == begins || shares.start(cta - 1) > begins) return;

    const Parts found{parts, static_cast<int>(threadIdx.x)};
    Sums sums = {};
    found.add_to(sums, cta - 1, 1);
    for (int other = cta; other < gridDim.x && shares.start(other) < ends[number]; ++other) {
        if (shares.start(other) < shares.start(other + 1)) found.add_to(sums, other, 0);
    }
    const long long bg = number / pairs;
    const int first = number % pairs * CONSUMERS * TILE + threadIdx.x / GROUP * TILE;
    int positions[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int at = first + entry_of(threadIdx.x % GROUP, half);
        positions[half] = at < key_len ? order[bg * key_len + at] : -1;
    }
    Gradients{dk, dv, ddelta}.store(sums, positions, bg, key_len, scale_log2 * LN2);
}
