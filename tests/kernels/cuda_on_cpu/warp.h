// Warp instructions: the last lane to arrive computes the results of all of them.
#pragma once

namespace cuda_on_cpu {

// The lanes that `one` waits for go on if all of them have arrived at the same instruction with the same mask.
inline bool try_combine(const Fiber& one) {
    Fiber* lanes[32] = {};
    unsigned mask = 0;
    const int first = one.index & ~31;
    for (int lane = 0; lane < 32; ++lane) {
        Fiber& other = fibers[first + lane];
        if (!(one.mask >> lane & 1) || other.state == State::DONE) continue;
        if (other.state != State::IN_WARP || other.mask != one.mask || other.combine != one.combine) return false;
        lanes[lane] = &other;
        mask |= 1u << lane;
    }
    one.combine(lanes, mask);
    for (int lane = 0; lane < 32; ++lane)
        if (lanes[lane] != nullptr) lanes[lane]->state = State::READY;
    return true;
}

inline void in_warp(const char* what, unsigned mask, Combine combine, void* slot, const char* file, int line) {
    const int lane = current->index & 31;
    if (!(mask >> lane & 1)) fail("%s at %s:%d: the mask 0x%08x leaves out the calling lane %d", what, file, line, mask, lane);
    current->state = State::IN_WARP;
    current->what = what;
    current->mask = mask;
    current->combine = combine;
    current->slot = slot;
    current->file = file;
    current->line = line;
    if (!try_combine(*current)) wait();
}

template <class Slot>
Slot& slot_of(const Fiber* lane) {
    return *static_cast<Slot*>(lane->slot);
}

template <class T>
struct Shuffle {
    T value;
    int source;
    T result;

    static void combine(Fiber* const lanes[32], unsigned mask) {
        for (int lane = 0; lane < 32; ++lane) {
            if (lanes[lane] == nullptr) continue;
            Shuffle& mine = slot_of<Shuffle>(lanes[lane]);
            const int source = mine.source;
            // The value of a lane that takes no part is undefined: here all its bits are ones.
            if (mask >> source & 1) mine.result = slot_of<Shuffle>(lanes[source]).value;
            else memset(&mine.result, 0xff, sizeof mine.result);
        }
    }
};

template <class T>
T shuffle(const char* what, unsigned mask, T value, int source, const char* file, int line) {
    static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "shuffles take 32 and 64 bits");
    Shuffle<T> slot{value, source, value};
    in_warp(what, mask, Shuffle<T>::combine, &slot, file, line);
    return slot.result;
}

inline int lane_id() { return current->index & 31; }

// Votes, reductions and matches see all values at once.
template <class T, class Result, Result (*FUNCTION)(const T values[32], unsigned mask, int lane)>
struct Vote {
    T value;
    Result result;

    static void combine(Fiber* const lanes[32], unsigned mask) {
        T values[32] = {};
        for (int lane = 0; lane < 32; ++lane)
            if (lanes[lane] != nullptr) values[lane] = slot_of<Vote>(lanes[lane]).value;
        for (int lane = 0; lane < 32; ++lane)
            if (lanes[lane] != nullptr) slot_of<Vote>(lanes[lane]).result = FUNCTION(values, mask, lane);
    }
};

template <class T, class Result, Result (*FUNCTION)(const T*, unsigned, int)>
Result vote(const char* what, unsigned mask, T value, const char* file, int line) {
    using Slot = Vote<T, Result, FUNCTION>;
    Slot slot{value, Result()};
    in_warp(what, mask, Slot::combine, &slot, file, line);
    return slot.result;
}

inline unsigned ballot(const bool* values, unsigned mask, int) {
    unsigned result = 0;
    for (int lane = 0; lane < 32; ++lane) result |= (mask >> lane & 1u & values[lane]) << lane;
    return result;
}
inline int any_of(const bool* values, unsigned mask, int) { return ballot(values, mask, 0) != 0; }
inline int all_of(const bool* values, unsigned mask, int) { return ballot(values, mask, 0) == mask; }

template <class T>
unsigned equal_lanes(const T* values, unsigned mask, int lane) {
    unsigned result = 0;
    for (int other = 0; other < 32; ++other) result |= (mask >> other & 1u & (values[other] == values[lane])) << other;
    return result;
}

template <class T, T (*FUNCTION)(T, T)>
T reduced(const T* values, unsigned mask, int lane) {
    T result = values[lane];
    for (int other = 0; other < 32; ++other)
        if (mask >> other & 1 && other != lane) result = FUNCTION(result, values[other]);
    return result;
}
template <class T> T add(T a, T b) { return T(std::make_unsigned_t<T>(a) + std::make_unsigned_t<T>(b)); }
template <class T> T smaller(T a, T b) { return a < b ? a : b; }
template <class T> T larger(T a, T b) { return a < b ? b : a; }
inline unsigned bit_or(unsigned a, unsigned b) { return a | b; }
inline unsigned bit_and(unsigned a, unsigned b) { return a & b; }
inline unsigned bit_xor(unsigned a, unsigned b) { return a ^ b; }

inline void nothing(Fiber* const*, unsigned) {}

}  // namespace cuda_on_cpu

inline void __syncwarp(unsigned mask = 0xffffffffu, WHERE) {
    cuda_on_cpu::in_warp("__syncwarp", mask, cuda_on_cpu::nothing, nullptr, file, line);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, WHERE) {
    const int lane = cuda_on_cpu::lane_id();
    return cuda_on_cpu::shuffle("__shfl_sync", mask, value, (lane & ~(width - 1)) | (source & (width - 1)), file, line);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, WHERE) {
    const int lane = cuda_on_cpu::lane_id(), source = lane - (int)delta;
    return cuda_on_cpu::shuffle("__shfl_up_sync", mask, value, source < (lane & ~(width - 1)) ? lane : source, file, line);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, WHERE) {
    const int lane = cuda_on_cpu::lane_id(), source = lane + (int)delta;
    return cuda_on_cpu::shuffle("__shfl_down_sync", mask, value, source > (lane | (width - 1)) ? lane : source, file, line);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, WHERE) {
    const int lane = cuda_on_cpu::lane_id(), source = lane ^ lane_mask;
    return cuda_on_cpu::shuffle("__shfl_xor_sync", mask, value, source > (lane | (width - 1)) ? lane : source, file, line);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, WHERE) {
    return cuda_on_cpu::vote<bool, unsigned, cuda_on_cpu::ballot>("__ballot_sync", mask, predicate != 0, file, line);
}
inline int __any_sync(unsigned mask, int predicate, WHERE) {
    return cuda_on_cpu::vote<bool, int, cuda_on_cpu::any_of>("__any_sync", mask, predicate != 0, file, line);
}
inline int __all_sync(unsigned mask, int predicate, WHERE) {
    return cuda_on_cpu::vote<bool, int, cuda_on_cpu::all_of>("__all_sync", mask, predicate != 0, file, line);
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value, WHERE) {
    return cuda_on_cpu::vote<T, unsigned, cuda_on_cpu::equal_lanes<T>>("__match_any_sync", mask, value, file, line);
}

#define REDUCTION(name, T, function)                                                                     \
    inline T name(unsigned mask, T value, WHERE) {                                                       \
        return cuda_on_cpu::vote<T, T, cuda_on_cpu::reduced<T, cuda_on_cpu::function>>(#name, mask, value, file, line); \
    }
REDUCTION(__reduce_add_sync, int, add)
REDUCTION(__reduce_add_sync, unsigned, add)
REDUCTION(__reduce_min_sync, int, smaller)
REDUCTION(__reduce_min_sync, unsigned, smaller)
REDUCTION(__reduce_max_sync, int, larger)
REDUCTION(__reduce_max_sync, unsigned, larger)
REDUCTION(__reduce_or_sync, unsigned, bit_or)
REDUCTION(__reduce_and_sync, unsigned, bit_and)
REDUCTION(__reduce_xor_sync, unsigned, bit_xor)
#undef REDUCTION
