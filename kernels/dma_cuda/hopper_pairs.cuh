// Pairs of tiles of keys, which part of one a CTA does, and the shared memory through which queries come, STAGES steps of 64
// at a time.
//
// Defined from outside, besides what tiles.cuh asks for: STAGES.
#pragma once
#include "heads.cuh"
#include "hopper.cuh"
#include "shares.cuh"

constexpr int GROUP = 128;           // threads of a warpgroup
constexpr int CONSUMERS = 2;         // warpgroups that compute
constexpr int TILE = 64;             // keys of a warpgroup
constexpr int ROWS = 64;             // queries of a step
constexpr int ROW = 128;             // bytes of a row of shared memory: 64 columns
constexpr int HALF_BYTES = 64 * ROW; // of 64 rows of 64 columns
constexpr int TILE_BYTES = D / 64 * HALF_BYTES;

struct Shared {
    unsigned char* base;

    __device__ __forceinline__ unsigned char* k(int consumer) const { return base + consumer * TILE_BYTES; }
    __device__ __forceinline__ unsigned char* v(int consumer) const { return k(CONSUMERS + consumer); }
    __device__ __forceinline__ unsigned char* q(int stage) const { return k(2 * CONSUMERS) + stage * TILE_BYTES; }
    __device__ __forceinline__ unsigned char* dout(int stage) const { return q(STAGES + stage); }
    __device__ __forceinline__ uint64_t* full(int stage) const { return reinterpret_cast<uint64_t*>(q(2 * STAGES)) + stage; }
    __device__ __forceinline__ uint64_t* empty(int stage) const { return full(STAGES + stage); }
    // Of the queries of a step: lse, relative and in units of log 2; sums of dout * out; what scores are relative to.
    __device__ __forceinline__ float* lse(int stage) const { return reinterpret_cast<float*>(full(2 * STAGES)) + stage * ROWS; }
    __device__ __forceinline__ float* rowsum(int stage) const { return lse(STAGES + stage); }
    __device__ __forceinline__ float* origin(int stage) const { return lse(2 * STAGES) + stage; }
    // Where the keys of a warpgroup are; -1 where there is none.
    __device__ __forceinline__ int* positions(int consumer) const { return reinterpret_cast<int*>(origin(STAGES)) + consumer * TILE; }

    __device__ __forceinline__ void init_barriers() const {
        for (int stage = 0; stage < STAGES; ++stage) {
            barrier_init(full(stage), GROUP + GROUP / 32);  // copies of each thread that copies, and each warp
            barrier_init(empty(stage), CONSUMERS * GROUP / 32);
        }
    }
};

struct Problem {
    Sizes sizes;
    Shares shares;  // of pairs of tiles
    int tiles;      // of one head
    const int *order, *first, *last, *full_first, *full_last;

    __device__ __forceinline__ int pairs() const { return (tiles + 1) / 2; }
};

// Blocks of ROWS queries that meet a tile; a tile of dead keys alone meets none.
struct Range {
    int begin, end;
};

__device__ __forceinline__ Range range_of(const Problem& problem, int bg, int tile) {
    if (tile >= problem.tiles) return {0, 0};
    const int at = bg * problem.tiles + tile;
    return {problem.first[at] * (BLOCK_Q / ROWS), min(problem.last[at] * (BLOCK_Q / ROWS), (problem.sizes.query_len + ROWS - 1) / ROWS)};
}

// What a CTA does of a pair of tiles. Steps are blocks [begin, end) of the first head that shares the keys, then of the next.
struct Part {
    int bg, pair, first_step, steps;  // steps: 0 where the keys meet no query
    bool any, whole;                  // any: the CTA has a part of this pair
    Range both;

    __device__ __forceinline__ Part(const Problem& problem, int number) {
        const Shares& shares = problem.shares;
        const long long begins = shares.begins(number);
        first_step = static_cast<int>(max(shares.start(blockIdx.x), begins) - begins);
        const int all = static_cast<int>(shares.ends[number] - begins);
        const int count = static_cast<int>(min(shares.start(blockIdx.x + 1) - begins, static_cast<long long>(all))) - first_step;
        bg = number / problem.pairs();
        pair = number % problem.pairs();
        any = count > 0;
        whole = count == all;
        const Range a = range_of(problem, bg, pair * 2), b = range_of(problem, bg, pair * 2 + 1);
        both = {a.begin, a.end};
        if (a.begin >= a.end) both = b;
        else if (b.begin < b.end) both = {min(a.begin, b.begin), max(a.end, b.end)};
        steps = both.begin < both.end ? count : 0;
    }
    __device__ __forceinline__ int blocks() const { return both.end - both.begin; }
    __device__ __forceinline__ int first_block() const { return steps > 0 ? both.begin + first_step % blocks() : 0; }
};
