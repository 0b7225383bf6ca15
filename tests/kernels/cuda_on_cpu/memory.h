// Atomics, plain since fibers do not interrupt one another; fences; loads with a hint.
#pragma once

namespace cuda_on_cpu {
template <class T>
constexpr bool is_atomic = std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8);
}

#define ATOMIC(name, updated)                                    \
    template <class T>                                           \
    T name(T* address, std::type_identity_t<T> value) {          \
        static_assert(cuda_on_cpu::is_atomic<T>);                \
        const T old = *address;                                  \
        *address = updated;                                      \
        return old;                                              \
    }
ATOMIC(atomicAdd, old + value)
ATOMIC(atomicSub, old - value)
ATOMIC(atomicMax, old < value ? value : old)
ATOMIC(atomicMin, value < old ? value : old)
ATOMIC(atomicOr, old | value)
ATOMIC(atomicAnd, old & value)
ATOMIC(atomicXor, old ^ value)
ATOMIC(atomicExch, value)
#undef ATOMIC
template <class T>
T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
    static_assert(cuda_on_cpu::is_atomic<T>);
    const T old = *address;
    if (old == expected) *address = value;
    return old;
}

inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T> T __ldg(const T* address) { return *address; }
template <class T> T __ldcg(const T* address) { return *address; }
template <class T> T __ldcs(const T* address) { return *address; }
template <class T> void __stcg(T* address, std::type_identity_t<T> value) { *address = value; }
template <class T> void __stcs(T* address, std::type_identity_t<T> value) { *address = value; }
