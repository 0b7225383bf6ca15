// Products of a warpgroup, as late as they may be made: where the warp waits for them. Until then accumulators are NaN,
// and operands are read only then; so a missing wait shows, and so does an operand that is overwritten too early.
// Each warp makes its 16 rows of the 64 by itself, as on a GPU. Layouts: PTX ISA, wgmma.mma_async.m64nNk16, "Register
// fragments and shared memory matrix layouts" and "Matrix descriptor".
#pragma once

namespace cuda_on_cpu {

struct GroupProduct {
    int columns;
    uint64_t a, b;      // descriptors
    bool a_in_registers, add;
    float* d[32];
    const uint32_t* registers[32];
    uint64_t fenced_at; // of the lane that fenced first
    int group;
};

struct WarpProducts {
    std::vector<GroupProduct> pending;
    std::vector<std::vector<float>> kept;  // of the accumulators of each: what they were, if those are not of an earlier one
    int group;
    bool fenced;
};
static WarpProducts warp_products[MAX_THREADS / 32];

constexpr bool HALF_IS_BF16 =
#if defined(BF16) && BF16
    true;
#else
    false;
#endif
inline float half_value(uint16_t bits) { return HALF_IS_BF16 ? bf16_value(bits) : f16_value(bits); }

// A matrix in shared memory with 128-byte swizzle. `outer` counts rows of a or columns of b.
struct Matrix {
    uint64_t descriptor, fenced_at;
    bool by_k;  // neighbours in memory are neighbours along k (K-major)

    float at(int outer, int k) const {
        const uint64_t d = descriptor;
        const size_t start = (d & 0x3fff) << 4, leading = (d >> 16 & 0x3fff) << 4, stride = (d >> 32 & 0x3fff) << 4;
        if (d >> 62 != 1) fail("wgmma: the descriptor 0x%llx has no 128-byte swizzle, and others are not emulated", (unsigned long long)d);
        if ((d >> 49 & 7) != 0 || (start >> 7 & 7) != 0) fail("wgmma: a matrix does not begin with a block of 1024 bytes");
        size_t place = start;
        if (by_k) place += outer / 8 * stride + outer % 8 * 128 + k * 2;
        else place += outer / 64 * leading + outer % 64 * 2 + k / 8 * stride + k % 8 * 128;
        place ^= (place >> 7 & 7) << 4;
        if (place < 1024 || place - 1024 >= SHARED_BYTES) fail("wgmma reads at 0x%zx of shared memory", place);
        place -= 1024;
        if (written_at[place / 16] > fenced_at) fail("wgmma reads what cp.async wrote to 0x%zx, with no fence.proxy.async between", place);
        uint16_t bits;
        memcpy(&bits, dynamic_shared + place, 2);
        return half_value(bits);
    }
};

inline void execute(const GroupProduct& product, int warp) {
    float a[16][16];
    for (int row = 0; row < 16; ++row)
        for (int k = 0; k < 16; ++k) {
            if (product.a_in_registers) {
                const uint32_t word = product.registers[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2];
                a[row][k] = half_value((uint16_t)(word >> (k % 2 * 16)));
            } else {
                a[row][k] = Matrix{product.a, product.fenced_at, true}.at(warp % 4 * 16 + row, k);
            }
        }
    const Matrix b{product.b, product.fenced_at, !product.a_in_registers};
    for (int column = 0; column < product.columns; ++column) {
        float values[16];
        for (int k = 0; k < 16; ++k) values[k] = b.at(column, k);
        for (int row = 0; row < 16; ++row) {
            float& d = product.d[row % 8 * 4 + column % 8 / 2][column / 8 * 4 + row / 8 * 2 + column % 2];
            float sum = product.add ? d : 0.0f;
            for (int k = 0; k < 16; ++k) sum += a[row][k] * values[k];
            d = sum;
        }
    }
}

// Before a product is made: what its accumulators were. After: NaN for those that a later product still waits to add to.
inline void keep(WarpProducts& warp, size_t first, size_t last) {
    for (size_t i = first; i < last; ++i) {
        const GroupProduct& one = warp.pending[i];
        warp.kept[i].clear();
        for (size_t j = 0; j < i; ++j)
            if (warp.pending[j].d[0] == one.d[0]) goto kept_by_another;
        for (float* d : one.d) {
            warp.kept[i].insert(warp.kept[i].end(), d, d + one.columns / 2);
            memset(d, 0xff, one.columns / 2 * sizeof(float));
        }
    kept_by_another:;
    }
}

struct GroupProductSlot {
    int columns;
    float* d;
    const uint32_t* registers;
    uint64_t a, b;
    bool add;

    static void combine(Fiber* const lanes[32], unsigned mask) {
        if (mask != 0xffffffffu) fail("wgmma needs all 32 lanes, and has 0x%08x", mask);
        WarpProducts& warp = warp_products[lanes[0]->index / 32];
        if (!warp.fenced) fail("wgmma without wgmma.fence since registers may have been written");
        const GroupProductSlot& first = slot_of<GroupProductSlot>(lanes[0]);
        GroupProduct product{first.columns, first.a, first.b, first.registers != nullptr, first.add};
        product.group = warp.group;
        product.fenced_at = ~0ull;
        for (int lane = 0; lane < 32; ++lane) {
            const GroupProductSlot& mine = slot_of<GroupProductSlot>(lanes[lane]);
            if (mine.a != first.a || mine.b != first.b || mine.add != first.add) fail("the lanes of a warp start different products");
            product.d[lane] = mine.d;
            product.registers[lane] = mine.registers;
            product.fenced_at = min(product.fenced_at, lanes[lane]->fenced_at);
        }
        warp.pending.push_back(product);
        warp.kept.emplace_back();
        keep(warp, warp.pending.size() - 1, warp.pending.size());
    }
};

inline void commit_products(Fiber* const lanes[32], unsigned) { ++warp_products[lanes[0]->index / 32].group; }
inline void fence_products(Fiber* const lanes[32], unsigned) { warp_products[lanes[0]->index / 32].fenced = true; }

template <int N>
void wait_for_products(Fiber* const lanes[32], unsigned) {
    const int number = lanes[0]->index / 32;
    WarpProducts& warp = warp_products[number];
    size_t count = 0;
    while (count < warp.pending.size() && warp.pending[count].group < warp.group - N) {
        const GroupProduct& one = warp.pending[count];
        const std::vector<float>& kept = warp.kept[count];
        for (size_t i = 0; i < kept.size(); ++i) one.d[i / (one.columns / 2)][i % (one.columns / 2)] = kept[i];
        execute(one, number);
        ++count;
    }
    warp.pending.erase(warp.pending.begin(), warp.pending.begin() + count);
    warp.kept.erase(warp.kept.begin(), warp.kept.begin() + count);
    for (size_t i = 0; i < warp.pending.size(); ++i)
        if (warp.kept[i].empty()) keep(warp, i, i + 1);
    warp.fenced = false;
}

// Called for each thread of a block before it starts.
inline void start_products(int thread) {
    if (thread % 32 == 0) warp_products[thread / 32] = {};
}

}  // namespace cuda_on_cpu

template <int COUNT>
inline void wgmma_first(float (&d)[COUNT], uint64_t a, uint64_t b, WHERE) {
    cuda_on_cpu::GroupProductSlot slot{COUNT * 2, d, nullptr, a, b, false};
    cuda_on_cpu::in_warp("wgmma", 0xffffffffu, cuda_on_cpu::GroupProductSlot::combine, &slot, file, line);
}
template <int COUNT>
inline void wgmma_more(float (&d)[COUNT], uint64_t a, uint64_t b, WHERE) {
    cuda_on_cpu::GroupProductSlot slot{COUNT * 2, d, nullptr, a, b, true};
    cuda_on_cpu::in_warp("wgmma", 0xffffffffu, cuda_on_cpu::GroupProductSlot::combine, &slot, file, line);
}
template <int COUNT>
inline void wgmma_registers(float (&d)[COUNT], const uint32_t* a, uint64_t b, WHERE) {
    cuda_on_cpu::GroupProductSlot slot{COUNT * 2, d, a, 0, b, true};
    cuda_on_cpu::in_warp("wgmma", 0xffffffffu, cuda_on_cpu::GroupProductSlot::combine, &slot, file, line);
}
inline void wgmma_fence(WHERE) {
    cuda_on_cpu::in_warp("wgmma.fence", 0xffffffffu, cuda_on_cpu::fence_products, nullptr, file, line);
}
inline void wgmma_commit(WHERE) {
    cuda_on_cpu::in_warp("wgmma.commit_group", 0xffffffffu, cuda_on_cpu::commit_products, nullptr, file, line);
}
template <int N>
inline void wgmma_wait(WHERE) {
    cuda_on_cpu::in_warp("wgmma.wait_group", 0xffffffffu, cuda_on_cpu::wait_for_products<N>, nullptr, file, line);
}
// Where a compiler might move registers across a wait; here they are memory, and it does not.
template <class T, int COUNT>
inline void settled(T (&)[COUNT]) {}
inline void compute_before(bool never) {
    if (never) cuda_on_cpu::fail("what can never be is so");
}
inline int not_kept(int number) { return number; }
