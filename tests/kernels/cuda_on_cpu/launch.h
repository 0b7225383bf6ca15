// One launch, as Python calls it: from arrays of pointers to the typed arguments of a kernel.
#pragma once

namespace cuda_on_cpu {

struct Launch {
    unsigned grid[3], block[3];
    size_t shared_bytes;
    int reversed;
    int count;
    const size_t* sizes;
    void** arguments;  // addresses of the values
};

template <auto KERNEL>
struct Entry;

template <class... Parameters, void (*KERNEL)(Parameters...)>
struct Entry<KERNEL> {
    template <size_t... I>
    static void call_with(void** arguments, std::index_sequence<I...>) {
        KERNEL(*static_cast<Parameters*>(arguments[I])...);
    }
    static void call(void** arguments) { call_with(arguments, std::index_sequence_for<Parameters...>()); }

    // Null, or what went wrong.
    static const char* launch(const Launch& launch) {
        constexpr size_t sizes[] = {sizeof(Parameters)..., 0};
        const size_t threads = (size_t)launch.block[0] * launch.block[1] * launch.block[2];
        if (launch.count != (int)sizeof...(Parameters))
            return explain("the kernel takes %zu arguments, not %zu", sizeof...(Parameters), launch.count);
        for (int i = 0; i < launch.count; ++i)
            if (launch.sizes[i] != sizes[i]) return explain("argument %zu has %zu bytes in the kernel", i, sizes[i]);
        if (threads == 0 || threads > MAX_THREADS) return explain("a block has 1 to %zu threads, not %zu", MAX_THREADS, threads);
        if (launch.shared_bytes > SHARED_BYTES - 1024)
            return explain("a block has at most %zu bytes of shared memory, not %zu", SHARED_BYTES - 1024, launch.shared_bytes);
        kernel_call = call;
        kernel_arguments = launch.arguments;
        block_threads = (int)threads;
        blockDim = {launch.block[0], launch.block[1], launch.block[2]};
        gridDim = {launch.grid[0], launch.grid[1], launch.grid[2]};
        memset(dynamic_shared, 0xff, sizeof dynamic_shared);
        for (unsigned z = 0; z < gridDim.z; ++z)
            for (unsigned y = 0; y < gridDim.y; ++y)
                for (unsigned x = 0; x < gridDim.x; ++x) {
                    blockIdx = {x, y, z};
                    if (run_block(launch.shared_bytes, launch.reversed != 0)) continue;
                    for (Fiber& fiber : fibers) fiber.started = false;  // they stopped halfway
                    return message;
                }
        return nullptr;
    }

    static const char* explain(const char* format, size_t a, size_t b) {
        snprintf(message, sizeof message, format, a, b);
        return message;
    }
};

}  // namespace cuda_on_cpu
