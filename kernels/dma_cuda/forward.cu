// Forward: one block of 128 queries of one head a CTA, four warps of 32 rows, 64 keys at a time, as FlashAttention-2
// does it (arXiv 2307.08691). Each fragment of keys that is read serves two blocks of 16 rows.
#include "heads.cuh"
#include "schedule.cuh"

constexpr int KEYS = 64;
constexpr int M = 2;          // blocks of 16 rows a warp
constexpr int N = KEYS / 8;   // blocks of 8 keys

// Of rows lane / 4 and lane / 4 + 8 of each block. Scores are in units of log 2.
struct State {
    float out[M][D / 8][4];
    float reference[M][2];  // what is subtracted from scores: their largest so far, or up to SLACK less
    float sum[M][2];        // of the probabilities of this lane
};

// As long as no score exceeds the reference by more, probabilities stay below 2^SLACK, and nothing needs to be scaled
// anew: after the first keys that is the rule.
constexpr float SLACK = 8.0f;

// A row that has met no live key yet: subtracting 0 keeps its probabilities 0 rather than NaN.
__device__ __forceinline__ float finite(float reference) { return reference == -infinity() ? 0.0f : reference; }

__device__ __forceinline__ void rescale(State& state, const float largest[M][2]) {
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float reference = fmaxf(state.reference[m][half], largest[m][half]);
            const float factor = exp2_approx(state.reference[m][half] - finite(reference));
            state.reference[m][half] = reference;
            state.sum[m][half] *= factor;
#pragma unroll
            for (int n = 0; n < D / 8; ++n) {
                state.out[m][n][half * 2] *= factor;
                state.out[m][n][half * 2 + 1] *= factor;
            }
        }
    }
}

template <bool MASKED>
__device__ __forceinline__ void step(State& state, const unsigned char* q, const KeyBuffers<KEYS>& keys, int stage, int number,
                                     float scale, float origin, int first_position, int lane) {
    const Lane by_row = rows_first(lane), by_piece = pieces_first(lane);
    float s[M][N][4] = {};
#pragma unroll
    for (int k = 0; k < STEPS; ++k) {
        uint32_t a[M][4];
#pragma unroll
        for (int m = 0; m < M; ++m) ldmatrix_x4(a[m], by_row.at(q, m * 16, k * 2));
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            uint32_t b[4];
            ldmatrix_x4(b, by_piece.at(keys.k(stage), n * 8, k * 2));
#pragma unroll
            for (int m = 0; m < M; ++m) {
                mma(s[m][n], a[m], b[0], b[1]);
                mma(s[m][n + 1], a[m], b[2], b[3]);
            }
        }
    }

#pragma unroll
    for (int n = 0; n < N; ++n) {
        const int entry = n * 8 + lane % 4 * 2;
        const float2 delta = *reinterpret_cast<const float2*>(keys.delta(stage) + entry);
        const float bias[2] = {(delta.x - origin) * LOG2E, (delta.y - origin) * LOG2E};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
            for (int m = 0; m < M; ++m) s[m][n][i] = fmaf(s[m][n][i], scale, bias[i & 1]);
        }
        if (MASKED) {
            const int2 birth = positions_of(keys, number, entry);
            const int2 evict = *reinterpret_cast<const int2*>(keys.evict(stage) + entry);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int from = i & 1 ? birth.y : birth.x, end = i & 1 ? evict.y : evict.x;
#pragma unroll
                for (int m = 0; m < M; ++m) {
                    const int query = first_position + m * 16 + lane / 4 + i / 2 * 8;
                    s[m][n][i] = from <= query && query < end ? s[m][n][i] : -infinity();
                }
            }
        }
    }

    float largest[M][2];
    bool outgrown = false;
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float mine = s[m][0][half * 2];
#pragma unroll
            for (int n = 0; n < N; ++n) mine = fmaxf(mine, fmaxf(s[m][n][half * 2], s[m][n][half * 2 + 1]));
            largest[m][half] = max_of_quad(mine);
            outgrown |= largest[m][half] > state.reference[m][half] + SLACK;
        }
    }
    if (__any_sync(0xffffffff, outgrown)) rescale(state, largest);

    uint32_t p[M][KEYS / 16][4];
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float subtracted = MASKED ? finite(state.reference[m][half]) : state.reference[m][half];
            float sum = 0.0f;
#pragma unroll
            for (int n = 0; n < N; ++n) {
                const float low = exp2_approx(s[m][n][half * 2] - subtracted);
                const float high = exp2_approx(s[m][n][half * 2 + 1] - subtracted);
                sum += low + high;
                p[m][n / 2][n % 2 * 2 + half] = pack(low, high);
            }
            state.sum[m][half] += sum;
        }
    }

#pragma unroll
    for (int k = 0; k < KEYS / 16; ++k) {
#pragma unroll
        for (int n = 0; n < D / 8; n += 2) {
            uint32_t b[4];
            ldmatrix_x4_trans(b, by_row.at(keys.v(stage), k * 16, n));
#pragma unroll
            for (int m = 0; m < M; ++m) {
                mma(state.out[m][n], p[m][k], b[0], b[1]);
                mma(state.out[m][n + 1], p[m][k], b[2], b[3]);
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
dma_forward(const void* q, const void* k, const void* v, const float* delta, const int* evict, const float* origins,
            const int* p0, const int* p1, const int* p2, const int* p3, unsigned char* out, float* lse, float* relative_lse,
            long long q_batch, long long q_head, int q_row, long long k_batch, long long k_head, int k_row, long long v_batch, long long v_head, int v_row,
            int kv_heads, int groups, int query_len, int key_len, int width, float scale_log2) {
    DYNAMIC_SHARED(shared);
    unsigned char* const q_tile = shared;
    const KeyBuffers<KEYS> keys{shared + BLOCK_Q * ROW_BYTES};
    Kept<KEYS>* const kept = reinterpret_cast<Kept<KEYS>*>(keys.shared + KeyBuffers<KEYS>::BYTES);

    const Sizes sizes{kv_heads, groups, query_len, key_len};
    const QueryBlock mine(sizes);
    const int first_row = mine.block * BLOCK_Q, lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 32;
    const long long bg = mine.key_head(sizes);
    const Keys from{Strides{k_batch, k_head, k_row}.rows(k, mine.b, mine.g),
                    Strides{v_batch, v_head, v_row}.rows(v, mine.b, mine.g), delta + bg * key_len, evict + bg * key_len,
                    p0 + (bg * sizes.query_blocks() + mine.block) * width};
    const int last_position = sizes.offset() + min(first_row + BLOCK_Q, query_len) - 1;
    const Schedule<KEYS> schedule({p0, p1, p2, p3, width}, bg, sizes.query_blocks(), mine.block, last_position, key_len);

    if (threadIdx.x == 0) *kept = {from, schedule, mine.first_row(sizes) + first_row, first_row,
                                       origins[bg * sizes.query_blocks() + mine.block]};
    copy_rows<BLOCK_Q>(q_tile, Strides{q_batch, q_head, q_row}.rows(q, mine.b, mine.head), first_row, query_len);
    int current = schedule.next(0);
#if GATHERS
    copy_positions(keys, schedule, 0, from);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    copy_positions(keys, schedule, 1, from);
#endif
    if (current < schedule.steps) copy_keys(keys, 0, schedule, current, from);
    cp_async_commit();

    State state = {};
#pragma unroll
    for (int m = 0; m < M; ++m) state.reference[m][0] = state.reference[m][1] = -infinity();

    for (int stage = 0, steps = schedule.steps; current < steps; stage ^= 1) {
        cp_async_wait<0>();
        __syncthreads();
        const int next = kept->schedule.next(current + 1);
        if (next < kept->schedule.steps) {
#if GATHERS
            copy_positions(keys, kept->schedule, next + 1, kept->keys);
#endif
            copy_keys(keys, stage ^ 1, kept->schedule, next, kept->keys);
        }
        cp_async_commit();
        const unsigned char* const my_q = q_tile + warp_row * ROW_BYTES;
        const int first_position = sizes.offset() + kept->first_row + warp_row;
        if (kept->schedule.needs_mask(current)) {
            step<true>(state, my_q, keys, stage, current, scale_log2, kept->origin, first_position, lane);
        } else {
            step<false>(state, my_q, keys, stage, current, scale_log2, kept->origin, first_position, lane);
        }
        current = next;
        steps = kept->schedule.steps;
    }
    cp_async_wait<0>();
    __syncthreads();

    const int rows = query_len - kept->first_row;
#pragma unroll
    for (int m = 0; m < M; ++m) {
        float factor[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float sum = sum_of_quad(state.sum[m][half]);
            factor[half] = sum > 0.0f ? 1.0f / sum : 0.0f;
            const int row = warp_row + m * 16 + lane / 4 + half * 8;
            if (lane % 4 == 0 && row < rows) {
                // In units of log 2, as scores are: changing units and back would cost what being relative gains.
                const float relative = sum > 0.0f ? state.reference[m][half] + log2f(sum) : -infinity();
                relative_lse[kept->first_of_all + row] = relative;
                lse[kept->first_of_all + row] = relative * LN2 + kept->origin;
            }
        }
        store_rows(state.out[m], factor[0], factor[1], q_tile, warp_row + m * 16, lane, [&](int within) -> unsigned char* {
            const int row = warp_row + m * 16 + within;
            return row < rows ? out + (kept->first_of_all + row) * ROW_BYTES : nullptr;
        });
    }
}
