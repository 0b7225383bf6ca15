// Tiles of rows in shared memory, and what the three kernels do with them.
//
// A tile holds rows of D 16-bit values without padding; the 16-byte pieces of a row are permuted by its number, so that
// both the copies and ldmatrix, which reads the same piece of eight rows, meet every bank once.
// Defined from outside: HEAD_DIM (64 or 128), BF16 (1: bfloat16, 0: float16), GATHERS (see schedule.cuh).
#pragma once
#include "primitives.cuh"

constexpr int D = HEAD_DIM;
constexpr int ROW_BYTES = D * 2;
constexpr int PIECES = D / 8;
constexpr int STEPS = D / 16;  // a product over D takes this many instructions
constexpr int THREADS = 128;
constexpr int BLOCK_Q = 128;
constexpr float LOG2E = 1.4426950408889634f;
constexpr float LN2 = 0.6931471805599453f;

static_assert(D == 64 || D == 128, "other head dimensions need other tile sizes");

__device__ __forceinline__ float infinity() { return __int_as_float(0x7f800000); }

__device__ __forceinline__ void mma(float d[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
    const uint32_t b[2] = {b0, b1};
#if BF16
    mma_m16n8k16_f32_bf16(d, a, b);
#else
    mma_m16n8k16_f32_f16(d, a, b);
#endif
}

__device__ __forceinline__ uint32_t pack(float low, float high) {
#if BF16
    return pack_bf16(low, high);
#else
    return pack_f16(low, high);
#endif
}

__device__ __forceinline__ float value(uint32_t bits) {
#if BF16
    return bf16_value(static_cast<uint16_t>(bits));
#else
    return f16_value(static_cast<uint16_t>(bits));
#endif
}

// Rows of one head in global memory: `stride` bytes from row to row.
struct Rows {
    const unsigned char* base;
    int stride;

    __device__ __forceinline__ const unsigned char* at(int row) const { return base + static_cast<long long>(row) * stride; }
};

__device__ __forceinline__ unsigned char* piece_at(unsigned char* tile, int row, int piece) {
    return tile + row * ROW_BYTES + (piece ^ (row & 7)) * 16;
}

// Where this lane reads for ldmatrix, of 16 rows and two neighbouring pieces of a tile. The registers of a fragment must
// be neighbours, or each product costs moves, so there are two orders of the four 8 x 8 matrices.
struct Lane {
    int row_offset, piece_offset;

    __device__ __forceinline__ Lane(int row, int piece) : row_offset(row * ROW_BYTES), piece_offset((piece ^ (row & 7)) * 16) {}
    // first_row a multiple of 8, piece even
    __device__ __forceinline__ const unsigned char* at(const unsigned char* tile, int first_row, int piece) const {
        return tile + first_row * ROW_BYTES + row_offset + (piece_offset ^ (piece * 16));
    }
};

// Read plainly, {0, 1, 2, 3} is `a`. Transposed, of b stored by rows, {0, 1} is the first piece and {2, 3} the second.
__device__ __forceinline__ Lane rows_first(int lane) { return Lane(lane & 15, lane >> 4); }

// Read plainly, of b whose columns are stored as rows, {0, 1} is the first eight columns and {2, 3} the others.
__device__ __forceinline__ Lane pieces_first(int lane) { return Lane((lane & 7) + (lane >> 4) * 8, lane >> 3 & 1); }

// How the threads share the copying of a tile: each takes one piece of every ROWS_AT_ONCE-th row.
constexpr int ROWS_AT_ONCE = THREADS / PIECES;
static_assert(ROWS_AT_ONCE % 8 == 0, "the permutation of pieces must be the same in all rows of a thread");

// Copy rows [first, first + COUNT) to a tile, zeros from row `end` on.
template <int COUNT>
__device__ __forceinline__ void copy_rows(unsigned char* tile, Rows rows, int first, int end) {
    const int row = threadIdx.x / PIECES, piece = threadIdx.x % PIECES;
    unsigned char* const to = piece_at(tile, row, piece);
    rows.base += piece * 16;
#pragma unroll
    for (int i = 0; i < COUNT; i += ROWS_AT_ONCE) {
        cp_async_16(to + i * ROW_BYTES, rows.at(first + row + i), first + row + i < end);
    }
}

// Copy the rows at positions[0..COUNT) (in shared memory) of two heads to two tiles, zeros from entry `end` on.
template <int COUNT>
__device__ __forceinline__ void gather_rows(unsigned char* tile_a, Rows a, unsigned char* tile_b, Rows b,
                                            const int* positions, int end) {
    const int row = threadIdx.x / PIECES, piece = threadIdx.x % PIECES;
    unsigned char* const to_a = piece_at(tile_a, row, piece);
    unsigned char* const to_b = piece_at(tile_b, row, piece);
    a.base += piece * 16;
    b.base += piece * 16;
    if (end >= COUNT) {  // nearly always; without the tests below a step has a fifth fewer instructions
#pragma unroll
        for (int i = 0; i < COUNT; i += ROWS_AT_ONCE) {
            const int position = positions[row + i];
            cp_async_16(to_a + i * ROW_BYTES, a.at(position), true);
            cp_async_16(to_b + i * ROW_BYTES, b.at(position), true);
        }
    } else {
#pragma unroll 1
        for (int i = 0; i < COUNT; i += ROWS_AT_ONCE) {
            const bool valid = row + i < end;
            const int position = valid ? positions[row + i] : 0;
            cp_async_16(to_a + i * ROW_BYTES, a.at(position), valid);
            cp_async_16(to_b + i * ROW_BYTES, b.at(position), valid);
        }
    }
}

// Accumulators of 16 rows a warp to memory: through shared memory (16 rows of a tile that only this warp uses), in
// 16-byte pieces. `target(row)` is where row 0..15 goes, or null.
template <class Target>
__device__ __forceinline__ void store_rows(const float sums[D / 8][4], float factor_low, float factor_high,
                                           unsigned char* tile, int first_row, int lane, Target target) {
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
        const int row = first_row + lane / 4, within = lane % 4 * 4;
        *reinterpret_cast<uint32_t*>(piece_at(tile, row, n) + within) = pack(sums[n][0] * factor_low, sums[n][1] * factor_low);
        *reinterpret_cast<uint32_t*>(piece_at(tile, row + 8, n) + within) =
            pack(sums[n][2] * factor_high, sums[n][3] * factor_high);
    }
    __syncwarp();
#pragma unroll
    for (int i = lane; i < 16 * PIECES; i += 32) {
        const int row = i / PIECES, piece = i % PIECES;
        unsigned char* to = target(row);
        if (to != nullptr) {
            *reinterpret_cast<uint4*>(to + piece * 16) = *reinterpret_cast<uint4*>(piece_at(tile, first_row + row, piece));
        }
    }
}

__device__ __forceinline__ float sum_of_quad(float x) {
    x += __shfl_xor_sync(0xffffffff, x, 1);
    return x + __shfl_xor_sync(0xffffffff, x, 2);
}

__device__ __forceinline__ float max_of_quad(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffff, x, 2));
}
