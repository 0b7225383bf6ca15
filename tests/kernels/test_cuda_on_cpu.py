"""The emulator of CUDA that the tests of our CUDA sources stand on, against tensor operations."""

import ctypes
import struct

import numpy as np
import pytest
import torch


@pytest.fixture
def build(emulated, tmp_path):
    """build(text, defines) -> the emulated kernels of a source with this text"""

    def build(text, defines=None, kernels=None):
        source = tmp_path / "snippet.cu"
        source.write_text(text)
        return emulated(source, defines, kernels)

    return build


SCAN = """
template <int COUNT>
__device__ __forceinline__ int sum_before(int value, int* sums) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    int inclusive = value;
    for (int step = 1; step < 32; step *= 2) {
        const int other = __shfl_up_sync(0xffffffffu, inclusive, step);
        if (lane >= step) inclusive += other;
    }
    if (lane == 31) sums[warp] = inclusive;
    __syncthreads();
    int before = 0;
#pragma unroll
    for (int w = 0; w < COUNT / 32; ++w)
        if (w < warp) before += sums[w];
    return before + inclusive - value;
}
extern "C" __global__ void __launch_bounds__(THREADS, (1))
scan(const int* __restrict__ values, int64_t* __restrict__ out, const long long offset, float factor) {
    __shared__ int sums[THREADS / 32];
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    out[i] = offset + (int64_t)((float)sum_before<THREADS>(values[i], sums) * factor);
}
"""


@pytest.mark.parametrize("reverse", [False, True])
def test_scan_with_shuffles(build, reverse):
    values = torch.arange(3 * 256, dtype=torch.int32).reshape(3, 256) % 7
    out = torch.zeros(3, 256, dtype=torch.int64)
    kernels = build(SCAN, {"THREADS": 256})
    kernels.launch("scan", (3,), 256, 0, values, out, np.int64(1 << 40), 2.0, reverse=reverse)
    assert torch.equal(out, (1 << 40) + 2 * (values.cumsum(1) - values))


HISTOGRAM = """
#include "bins.cuh"
extern "C" __global__ void histogram(const int* values, int n, int* counts, unsigned long long* key, float* sum) {
    DYNAMIC_SHARED(memory);
    int* bins = reinterpret_cast<int*>(memory);
    for (int i = threadIdx.x; i < BINS; i += blockDim.x) bins[i] = 0;
    __syncthreads();
    for (int i = blockIdx.y * blockDim.x + threadIdx.x; i < n; i += gridDim.y * blockDim.x) {
        atomicAdd(&bins[values[i]], 1);
        atomicMax(key, (unsigned long long)values[i] << 32 | i);
        atomicAdd(sum, 0.5f);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < BINS; i += blockDim.x) atomicAdd(counts + i, bins[i]);
}
"""


def test_histogram_with_atomics_and_an_included_file(build, tmp_path):
    (tmp_path / "bins.cuh").write_text("#pragma once\nconstexpr int BINS = 50;\n")
    values = torch.randint(0, 50, (1000,), generator=torch.Generator().manual_seed(0)).int()
    counts, key, total = torch.zeros(50, dtype=torch.int32), torch.zeros(1, dtype=torch.int64), torch.zeros(1)
    build(HISTOGRAM).launch("histogram", (1, 3), 96, 200, values, np.int32(1000), counts, key, total)
    assert torch.equal(counts, values.bincount(minlength=50).int())
    assert int(key) == (int(values.max()) << 32) + int((values == values.max()).nonzero().max())
    assert float(total) == 500


# Every thread writes its neighbour's cell in each of many phases; each phase needs both barriers.
PHASES = """
extern "C" __global__ void rotate(int* out, int rounds, int guarded) {
    __shared__ int cells[THREADS];
    cells[threadIdx.x] = threadIdx.x;
    __syncthreads();
    for (int r = 0; r < rounds; ++r) {
        const int mine = cells[threadIdx.x];
        if (guarded) __syncthreads();
        cells[(threadIdx.x + 1) % THREADS] = mine;
        __syncthreads();
    }
    out[threadIdx.x] = cells[threadIdx.x];
}
"""


def test_barriers_make_phases(build):
    kernels = build(PHASES, {"THREADS": 1024})
    out = torch.zeros(1024, dtype=torch.int32)
    for reverse in (False, True):
        kernels.launch("rotate", 1, 1024, 0, out, np.int32(20), np.int32(1), reverse=reverse)
        assert torch.equal(out, (torch.arange(1024, dtype=torch.int32) - 20) % 1024)
    kernels.launch("rotate", 1, 1024, 0, out, np.int32(20), np.int32(0))
    assert not torch.equal(out, (torch.arange(1024, dtype=torch.int32) - 20) % 1024), "a missing barrier must show"


WARP = """
extern "C" __global__ void warp(const int* values, int* out, float* floats, long long* wide) {
    const int lane = threadIdx.x, value = values[lane];
    const unsigned all = 0xffffffffu, mine = lane < 20 ? 0x000fffffu : 0xfff00000u;
    int n = 0;
    auto put = [&](int x) { out[n++ * 32 + lane] = x; };
    put(__shfl_sync(all, value, 5));
    put(__shfl_sync(all, value, lane + 1, 8));
    put(__shfl_up_sync(all, value, 3));
    put(__shfl_down_sync(all, value, 3, 16));
    put(__shfl_xor_sync(all, value, 9));
    put(__ballot_sync(mine, value & 1));
    put(__any_sync(mine, value == values[0]));
    put(__all_sync(all, value >= 0));
    put(__reduce_add_sync(mine, value));
    put(__reduce_min_sync(all, -value));
    put(__reduce_max_sync(mine, (unsigned)value));
    put(__match_any_sync(all, value % 5));
    put(__popc(value));
    put(__clz(value));
    put(__ffs(value));
    put(__brev(value));
    put(min(value, 10u) + max(1, 2));
    floats[lane] = __shfl_xor_sync(all, value * 0.25f, 1) + fmaf(2.0f, 3.0f, min(__int_as_float(0x7fc00000), 1.0f));
    wide[lane] = __shfl_sync(all, (long long)value << 40, 31) + __popcll(~0ull) + __clzll(1ll << 40);
    __syncwarp();
}
"""


def test_warp_instructions(build):
    values = torch.randint(0, 1000, (32,), generator=torch.Generator().manual_seed(1)).int()
    out, floats = torch.zeros(17, 32, dtype=torch.int32), torch.zeros(32)
    wide = torch.zeros(32, dtype=torch.int64)
    build(WARP).launch("warp", 1, 32, 0, values, out, floats, wide)
    v, lanes = values.tolist(), range(32)
    half = [list(range(20)) if lane < 20 else list(range(20, 32)) for lane in lanes]

    def bits(lanes):
        return sum(1 << lane for lane in lanes)

    expected = [
        [v[5] for lane in lanes],
        [v[lane // 8 * 8 + (lane + 1) % 8] for lane in lanes],
        [v[lane - 3] if lane >= 3 else v[lane] for lane in lanes],
        [v[lane + 3] if lane % 16 < 13 else v[lane] for lane in lanes],
        [v[lane ^ 9] for lane in lanes],
        [bits(x for x in half[lane] if v[x] & 1) for lane in lanes],
        [int(v[0] in [v[x] for x in half[lane]]) for lane in lanes],
        [1 for lane in lanes],
        [sum(v[x] for x in half[lane]) for lane in lanes],
        [-max(v) for lane in lanes],
        [max(v[x] for x in half[lane]) for lane in lanes],
        [bits(x for x in lanes if v[x] % 5 == v[lane] % 5) for lane in lanes],
        [x.bit_count() for x in v],
        [32 - x.bit_length() for x in v],
        [(x & -x).bit_length() for x in v],
        [int(f"{x:032b}"[::-1], 2) for x in v],
        [min(x, 10) + 2 for x in v],
    ]
    found = [[x % 2**32 for x in row] for row in out.tolist()]
    for i, row in enumerate(expected):
        assert found[i] == [x % 2**32 for x in row], f"instruction {i}"
    assert floats.tolist() == [v[lane ^ 1] * 0.25 + 7 for lane in lanes]
    assert wide.tolist() == [(v[31] << 40) + 64 + 23] * 32


EARLY = """
extern "C" __global__ void early(int* out, int stay) {
    __shared__ int last;
    if ((int)threadIdx.x >= stay) return;
    const int alive = __syncthreads_count(threadIdx.x % 2 == 0);
    if (threadIdx.x == 0) last = 7;
    __syncthreads();
    const int sum = __reduce_add_sync(0xffffffffu, 1);
    out[threadIdx.x] = alive * 1000 + sum * 10 + last;
}
"""


def test_threads_that_return_early_are_not_waited_for(build):
    out = torch.zeros(96, dtype=torch.int32)
    build(EARLY).launch("early", 1, 96, 0, out, np.int32(40))
    assert out[:32].tolist() == [20 * 1000 + 327] * 32
    assert out[32:40].tolist() == [20 * 1000 + 87] * 8
    assert not out[40:].any()


STUCK = """
extern "C" __global__ void two_barriers(int* out) {
    if (threadIdx.x < 7) __syncthreads();
    else __syncthreads();
    out[0] = 1;
}
extern "C" __global__ void barrier_and_shuffle(int* out) {
    if (threadIdx.x < 7) __syncthreads();
    else out[0] = __shfl_sync(0xffffffffu, out[0], 8);
}
extern "C" __global__ void asserts(int* out) {
    __syncthreads();
    assert(threadIdx.y != 1);
    out[0] = 1;
}
extern "C" __global__ void overruns(int* out) {
    DYNAMIC_SHARED(memory);
    if (threadIdx.x == 0) out[0] = memory[64];
    if (threadIdx.x == 3) memory[64] = 1;
}
extern "C" __global__ void fine(int* out) {
    __syncthreads();
    if (threadIdx.x == 0) out[0] = 2;
}
"""


def test_what_goes_wrong_is_said_and_the_next_launch_works(build, emulator):
    kernels, out = build(STUCK), torch.zeros(1, dtype=torch.int32)
    for name, block, message in [
        ("two_barriers", 64, r"different barriers: threads 0-6 wait in __syncthreads at .*cu:3; threads 7-63 wait"),
        (
            "barrier_and_shuffle",
            32,
            r"nobody can go on: threads 0-6 .*; threads 7-31 wait in __shfl_sync at .*mask 0xfff",
        ),
        ("asserts", (4, 2), r"block \(0, 0, 0\), thread \(0, 1, 0\): assertion failed at .*:13: threadIdx.y != 1"),
        ("overruns", 8, "wrote beyond the 64 bytes of dynamic shared memory"),
    ]:
        with pytest.raises(emulator.EmulatorError, match=message):
            kernels.launch(name, 1, block, 64, out)
    assert out[0] == 255, "shared memory starts with all bits set"
    kernels.launch("fine", 1, 64, 0, out)
    assert out[0] == 2


def test_arguments_are_checked(build, emulator):
    kernels, out = build('extern "C" __global__ void store(int* out, int64_t n) { *out = n; }'), torch.zeros(1).int()
    with pytest.raises(emulator.EmulatorError, match="takes 2 arguments, not 1"):
        kernels.launch("store", 1, 1, 0, out)
    with pytest.raises(emulator.EmulatorError, match="argument 1 has 8 bytes in the kernel"):
        kernels.launch("store", 1, 1, 0, out, np.int32(3))
    with pytest.raises(TypeError, match="int"):
        kernels.launch("store", 1, 1, 0, out, 3)
    with pytest.raises(emulator.EmulatorError, match="no kernel is named other"):
        kernels.launch("other", 1, 1, 0, out)
    with pytest.raises(emulator.EmulatorError, match="not 1025"):
        kernels.launch("store", 1, 1025, 0, out, np.int64(3))
    kernels.launch("store", 0, 1, 0, out, np.int64(3))
    assert out[0] == 0
    kernels.launch("store", 1, 1, 0, out, ctypes.c_int64(3))
    assert out[0] == 3
    with pytest.raises(emulator.EmulatorError, match="does not compile"):
        build('extern "C" __global__ void broken() { nonsense; }')


# One warp: d [16, 8 * N] += a [16, 16 * K] b, with a and b [16 * K, 8 * N] in shared memory by rows, and b through the
# transposing load. Then once more with b transposed in memory, through the plain one.
MMA = """
extern "C" __global__ void product(const uint16_t* a, const uint16_t* b, float* d, int transposed) {
    DYNAMIC_SHARED(memory);
    uint16_t* sa = reinterpret_cast<uint16_t*>(memory);
    uint16_t* sb = sa + 16 * 16 * K;
    const int lane = threadIdx.x;
    for (int i = lane; i < 16 * 16 * K / 8; i += 32) cp_async_16(sa + 8 * i, a + 8 * i, true);
    cp_async_commit();
    for (int i = lane; i < 16 * K * 16 / 8; i += 32) cp_async_16(sb + 8 * i, b + 8 * i, true);
    cp_async_commit();
    cp_async_wait<1>();
    __syncwarp();
    uint32_t fa[K][4];
    for (int k = 0; k < K; ++k) ldmatrix_x4(fa[k], sa + lane % 16 * 16 * K + 16 * k + lane / 16 * 8);
    cp_async_wait<WAITED>();
    __syncwarp();
    float sum[2][4] = {};
    for (int k = 0; k < K; ++k) {
        uint32_t fb[4];  // k halves of the first 8 columns, then of the others
        if (transposed) ldmatrix_x4(fb, sb + (lane / 16 * 8 + lane % 8) * 16 * K + 16 * k + lane / 8 % 2 * 8);
        else ldmatrix_x4_trans(fb, sb + (16 * k + lane % 16) * 16 + lane / 16 * 8);
        for (int n = 0; n < 2; ++n) PRODUCT(sum[n], fa[k], fb + 2 * n);
    }
    for (int n = 0; n < 2; ++n)
        for (int i = 0; i < 4; ++i) d[(lane / 4 + i / 2 * 8) * 16 + n * 8 + lane % 4 * 2 + i % 2] = sum[n][i];
}
extern "C" __global__ void rounded(const float* x, uint32_t* bf16, uint32_t* f16, float* power) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    bf16[i] = pack_bf16(x[i], -x[i]);
    f16[i] = pack_f16(x[i], -x[i]);
    power[i] = exp2_approx(x[i]);
}
struct Pieces {
    const uint16_t *first, *then;
};
extern "C" __global__ void zero_fill(const Pieces from, uint16_t* out) {
    DYNAMIC_SHARED(memory);
    cp_async_16(memory + 16 * threadIdx.x, from.first, threadIdx.x % 2);
    cp_async_4(memory + 16 * threadIdx.x, from.then, true);
    cp_async_commit();
    cp_async_wait<0>();
    for (int i = 0; i < 8; ++i) out[8 * threadIdx.x + i] = reinterpret_cast<uint16_t*>(memory)[8 * threadIdx.x + i];
}
"""


@pytest.mark.parametrize(("dtype", "name"), [(torch.bfloat16, "bf16"), (torch.float16, "f16")])
def test_matrix_product_through_fragments(build, dtype, name):
    generator = torch.Generator().manual_seed(2)
    a, b = torch.randn(16, 48, generator=generator).to(dtype), torch.randn(48, 16, generator=generator).to(dtype)
    kernels = build(MMA, {"K": 3, "WAITED": 0, "PRODUCT": f"mma_m16n8k16_f32_{name}"})
    expected = a.double() @ b.double()
    for transposed in (0, 1):
        d = torch.zeros(16, 16)
        b_in_memory = b.T.contiguous() if transposed else b
        kernels.launch("product", 1, 32, 3072, a, b_in_memory, d, np.int32(transposed))
        assert (d - expected).abs().max() < 1e-5
    waits_for_too_little = build(MMA, {"K": 3, "WAITED": 1, "PRODUCT": f"mma_m16n8k16_f32_{name}"})
    waits_for_too_little.launch("product", 1, 32, 3072, a, b, d, np.int32(0))
    assert d.isnan().any()


def test_rounding_to_half_precision_is_torchs(build):
    generator = torch.Generator().manual_seed(3)
    special = [0.0, -0.0, torch.inf, torch.nan, 65504.0, 65519.9, 65520.0, 2.0**-14, 2.0**-24, 2.0**-25, 1.5 * 2.0**-25]
    random = torch.randn(4096 - len(special), generator=generator) * torch.randn(1, generator=generator).exp()
    scaled = random * 2.0 ** torch.randint(-26, 17, random.shape, generator=generator)
    x = torch.cat([torch.tensor(special), scaled])
    halves = [torch.zeros(len(x), 2, dtype=dtype) for dtype in (torch.bfloat16, torch.float16)]
    power = torch.zeros(len(x))
    build(MMA, {"K": 1, "WAITED": 0, "PRODUCT": "mma_m16n8k16_f32_f16"}).launch(
        "rounded", 16, 256, 0, x, *halves, power
    )
    for found in halves:
        expected = torch.stack([x, -x], -1).to(found.dtype)
        assert torch.equal(found.isnan(), expected.isnan())
        assert torch.equal(found.nan_to_num(), expected.nan_to_num())
    torch.testing.assert_close(power, x.exp2(), equal_nan=True)


def test_copies_that_are_not_valid_fill_zeros(build):
    kernels = build(MMA, {"K": 1, "WAITED": 0, "PRODUCT": "mma_m16n8k16_f32_f16"})
    values, out = torch.arange(1, 9, dtype=torch.int16), torch.full((4, 8), 9, dtype=torch.int16)
    from_where = struct.pack("PP", values.data_ptr(), values[6:].data_ptr())
    kernels.launch("zero_fill", 1, 4, 64, from_where, out)
    assert out.tolist() == [[7, 8, *[0] * 6], [7, 8, *values[2:].tolist()]] * 2
