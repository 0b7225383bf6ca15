// What the sources write in PTX, in C++: matrix products of a warp, loads of their fragments, asynchronous copies.
// Layouts: PTX ISA, "Matrix fragments for mma.m16n8k16" and "ldmatrix".
#pragma once

inline uint16_t bf16_bits(float x) {
    const uint32_t bits = __float_as_uint(x);
    if (x != x) return 0x7fff;
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
inline float bf16_value(uint16_t bits) { return __uint_as_float((uint32_t)bits << 16); }

inline uint16_t f16_bits(float x) {
    const uint32_t sign = __float_as_uint(x) >> 16 & 0x8000u;
    uint32_t bits = __float_as_uint(x) & 0x7fffffffu;
    if (x != x) return 0x7fff;
    if (bits >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u);  // from 65520 on: infinity
    if (bits < 0x38800000u) {  // under 2^-14: added to 0.5, a float is rounded to the steps of float16 there
        return (uint16_t)(sign | (__float_as_uint(__uint_as_float(bits) + 0.5f) - 0x3f000000u));
    }
    bits += 0xfffu + (bits >> 13 & 1u);
    return (uint16_t)(sign | ((bits - 0x38000000u) >> 13));
}
inline float f16_value(uint16_t bits) {
    const uint32_t sign = (uint32_t)(bits & 0x8000u) << 16, rest = bits & 0x7fffu;
    if (rest >= 0x7c00u) return __uint_as_float(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
    if (rest < 0x400u) return __uint_as_float(sign | __float_as_uint((float)rest * 0x1p-24f));
    return __uint_as_float(sign | ((rest << 13) + 0x38000000u));
}

inline uint32_t pack_bf16(float low, float high) { return bf16_bits(low) | (uint32_t)bf16_bits(high) << 16; }
inline uint32_t pack_f16(float low, float high) { return f16_bits(low) | (uint32_t)f16_bits(high) << 16; }
inline float exp2_approx(float x) { return exp2f(x); }

namespace cuda_on_cpu {

struct Product {
    float* d;
    const uint32_t *a, *b;

    // d += a b for a of 16 x 16 by rows and b of 16 x 8 by columns.
    template <float (*VALUE)(uint16_t)>
    static void combine(Fiber* const lanes[32], unsigned mask) {
        if (mask != 0xffffffffu) fail("a matrix product needs all 32 lanes, and has 0x%08x", mask);
        float a[16][16], b[16][8];
        for (int lane = 0; lane < 32; ++lane) {
            const Product& mine = slot_of<Product>(lanes[lane]);
            const int row = lane / 4, column = lane % 4 * 2;
            for (int half = 0; half < 2; ++half) {
                auto part = [&](uint32_t word) { return VALUE((uint16_t)(word >> (16 * half))); };
                for (int i = 0; i < 4; ++i) a[row + i % 2 * 8][column + i / 2 * 8 + half] = part(mine.a[i]);
                for (int i = 0; i < 2; ++i) b[column + i * 8 + half][row] = part(mine.b[i]);
            }
        }
        for (int lane = 0; lane < 32; ++lane) {
            for (int i = 0; i < 4; ++i) {
                const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
                float& sum = slot_of<Product>(lanes[lane]).d[i];
                for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
            }
        }
    }
};

struct Load {
    uint32_t* registers;
    const unsigned char* row;

    template <bool TRANSPOSED>
    static void combine(Fiber* const lanes[32], unsigned mask) {
        if (mask != 0xffffffffu) fail("ldmatrix needs all 32 lanes, and has 0x%08x", mask);
        for (int matrix = 0; matrix < 4; ++matrix) {
            uint16_t values[8][8];
            for (int row = 0; row < 8; ++row) memcpy(values[row], slot_of<Load>(lanes[matrix * 8 + row]).row, 16);
            for (int lane = 0; lane < 32; ++lane) {
                const int row = lane / 4, column = lane % 4 * 2;
                const uint32_t low = TRANSPOSED ? values[column][row] : values[row][column];
                const uint32_t high = TRANSPOSED ? values[column + 1][row] : values[row][column + 1];
                slot_of<Load>(lanes[lane]).registers[matrix] = low | high << 16;
            }
        }
    }
};

inline void check_aligned(const char* what, const void* address, int bytes = 16) {
    if ((uintptr_t)address % bytes != 0) fail("%s: the address %p is no multiple of %d", what, address, bytes);
}

// An asynchronous copy is made where its thread waits for it, and until then its destination is NaN: so a missing wait
// shows, and so does a copy into memory that others still read.
inline void cp_async(void* shared, const void* global, int bytes, bool valid) {
    check_aligned("cp.async to", shared, bytes);
    if (valid) check_aligned("cp.async from", global, bytes);
    memset(shared, 0xff, bytes);
    current->copies.push_back({shared, valid ? global : nullptr, bytes, current->copy_group});
}

inline void copied(Fiber& fiber, const Copy& copy);
inline void arrive_where_copied(Fiber& fiber);

inline void make_copy(Fiber& fiber, const Copy& copy) {
    if (copy.from != nullptr) memcpy(copy.to, copy.from, copy.bytes);
    else memset(copy.to, 0, copy.bytes);
    copied(fiber, copy);
}

}  // namespace cuda_on_cpu

inline void mma_m16n8k16_f32_bf16(float d[4], const uint32_t a[4], const uint32_t b[2], WHERE) {
    cuda_on_cpu::Product slot{d, a, b};
    cuda_on_cpu::in_warp("mma bf16", 0xffffffffu, cuda_on_cpu::Product::combine<bf16_value>, &slot, file, line);
}
inline void mma_m16n8k16_f32_f16(float d[4], const uint32_t a[4], const uint32_t b[2], WHERE) {
    cuda_on_cpu::Product slot{d, a, b};
    cuda_on_cpu::in_warp("mma f16", 0xffffffffu, cuda_on_cpu::Product::combine<f16_value>, &slot, file, line);
}
inline void ldmatrix_x4(uint32_t registers[4], const void* row, WHERE) {
    cuda_on_cpu::check_aligned("ldmatrix", row);
    cuda_on_cpu::Load slot{registers, static_cast<const unsigned char*>(row)};
    cuda_on_cpu::in_warp("ldmatrix", 0xffffffffu, cuda_on_cpu::Load::combine<false>, &slot, file, line);
}
inline void ldmatrix_x4_trans(uint32_t registers[4], const void* row, WHERE) {
    cuda_on_cpu::check_aligned("ldmatrix.trans", row);
    cuda_on_cpu::Load slot{registers, static_cast<const unsigned char*>(row)};
    cuda_on_cpu::in_warp("ldmatrix.trans", 0xffffffffu, cuda_on_cpu::Load::combine<true>, &slot, file, line);
}

inline void cp_async_16(void* shared, const void* global, bool valid) { cuda_on_cpu::cp_async(shared, global, 16, valid); }
inline void cp_async_4(void* shared, const void* global, bool valid) { cuda_on_cpu::cp_async(shared, global, 4, valid); }
inline void cp_async_commit() { ++cuda_on_cpu::current->copy_group; }
template <int N>
inline void cp_async_wait() {
    cuda_on_cpu::Fiber& fiber = *cuda_on_cpu::current;
    size_t made = 0;
    while (made < fiber.copies.size() && fiber.copies[made].group < fiber.copy_group - N) make_copy(fiber, fiber.copies[made++]);
    fiber.copies.erase(fiber.copies.begin(), fiber.copies.begin() + made);
    cuda_on_cpu::arrive_where_copied(fiber);
}
