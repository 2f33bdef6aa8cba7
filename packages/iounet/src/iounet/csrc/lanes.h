#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <utility>

// Vectors over channels, for a register of BYTES bytes, and one machine code for each width of register.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are passed only to what is inlined
#endif

#define INLINE inline __attribute__((always_inline))

namespace iounet {

// Storage of the low precisions, whose arithmetic is float's.
struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

template <class S>
struct Arithmetic {
  using type = float;
};
template <>
struct Arithmetic<double> {
  using type = double;
};

template <class T, int BYTES>
struct Vector {
  static constexpr int kSize = BYTES / int(sizeof(T));
  typedef T type __attribute__((vector_size(BYTES)));
  typedef T anywhere __attribute__((vector_size(BYTES), aligned(sizeof(T)), may_alias));
  typedef uint32_t words __attribute__((vector_size(BYTES)));
  typedef uint16_t halves __attribute__((vector_size(BYTES / 2), aligned(2), may_alias));
};

template <class T, int BYTES>
INLINE typename Vector<T, BYTES>::type load(const T* x) {
  return *reinterpret_cast<const typename Vector<T, BYTES>::anywhere*>(x);
}

template <class T, int BYTES>
INLINE typename Vector<float, BYTES>::type load(const BFloat16* x) {
  using V = Vector<float, BYTES>;
  const auto bits = *reinterpret_cast<const typename V::halves*>(x);
  return typename V::type(__builtin_convertvector(bits, typename V::words) << 16);
}

// A half whose exponent and fraction are put into those of a float is 2^112 times too small, subnormal or not.
template <class T, int BYTES>
INLINE typename Vector<float, BYTES>::type load(const Half* x) {
  using V = Vector<float, BYTES>;
  using Words = typename V::words;
  const Words bits = __builtin_convertvector(*reinterpret_cast<const typename V::halves*>(x), Words);
  const Words magnitude = (bits & 0x7FFF) << 13;
  const Words finite = Words(typename V::type(magnitude) * 0x1p112f);
  const Words special = Words(magnitude >= 0x0F800000u) & 0x7F800000u;
  return typename V::type(finite | special | (bits & 0x8000) << 16);
}

template <int BYTES, class V, class T>
INLINE void store(const V& x, T* to) {
  *reinterpret_cast<typename Vector<T, BYTES>::anywhere*>(to) = x;
}

// Rounds to nearest, ties to even.
template <int BYTES, class V>
INLINE void store(const V& x, BFloat16* to) {
  using Words = typename Vector<float, BYTES>::words;
  using Halves = typename Vector<float, BYTES>::halves;
  const Words bits = Words(x), high = bits >> 16, rounded = (bits + 0x7FFF + (high & 1)) >> 16;
  const Words nan = Words((bits & 0x7FFFFFFF) > 0x7F800000);
  *reinterpret_cast<Halves*>(to) = __builtin_convertvector((nan & (high | 0x40)) | (~nan & rounded), Halves);
}

template <int BYTES, class V>
INLINE void store(const V& x, Half* to) {
  using Words = typename Vector<float, BYTES>::words;
  using Halves = typename Vector<float, BYTES>::halves;
  const Words bits = Words(x), magnitude = bits & 0x7FFFFFFF;
  const Words normal = (magnitude - 0x38000000 + 0xFFF + (bits >> 13 & 1)) >> 13;
  // The sum with 1/2 ends in the nearest multiple of 2^-24, the unit of a subnormal half.
  const Words subnormal = Words(V(magnitude) + 0.5f) - 0x3F000000;
  const Words small = Words(magnitude < 0x38800000), large = Words(magnitude >= 0x477FF000);
  const Words finite = (small & subnormal) | (~small & normal);
  const Words special = 0x7C00 | (Words(magnitude > 0x7F800000) & 0x0200);
  *reinterpret_cast<Halves*>(to) =
      __builtin_convertvector((large & special) | (~large & finite) | (bits >> 16 & 0x8000), Halves);
}

// The first or the second half of the cards after one perfect shuffle of a with b.
template <int HALF, class V, int... I>
INLINE V shuffle(const V& a, const V& b, std::integer_sequence<int, I...>) {
  constexpr int N = sizeof...(I);
  return __builtin_shufflevector(a, b, (HALF * N / 2 + I / 2 + I % 2 * N)...);
}

// Transposes a square: with n rows, log2(n) perfect shuffles of its upper with its lower half.
template <class V, int N>
INLINE void transpose(V (&x)[N]) {
  constexpr auto kCards = std::make_integer_sequence<int, N>();
  V y[N];
#pragma GCC unroll 4
  for (int step = 1; step < N; step *= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < N / 2; ++i) {
      y[2 * i] = shuffle<0>(x[i], x[i + N / 2], kCards);
      y[2 * i + 1] = shuffle<1>(x[i], x[i + N / 2], kCards);
    }
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) x[i] = y[i];
  }
}

// Runs `task.run<BYTES>(begin, end)` in the code for the widest registers that the processor has.
#if defined(__x86_64__) && defined(__linux__)
template <class Task>
__attribute__((target("arch=x86-64-v4"))) void run_avx512(const Task& task, int64_t begin, int64_t end) {
  task.template run<64>(begin, end);
}
template <class Task>
__attribute__((target("arch=x86-64-v3"))) void run_avx2(const Task& task, int64_t begin, int64_t end) {
  task.template run<32>(begin, end);
}
#endif

template <class Task>
void run(const Task& task, int64_t begin, int64_t end) {
#if defined(__x86_64__) && defined(__linux__)
  if (__builtin_cpu_supports("x86-64-v4")) return run_avx512(task, begin, end);
  if (__builtin_cpu_supports("x86-64-v3")) return run_avx2(task, begin, end);
#endif
  task.template run<16>(begin, end);
}

}  // namespace iounet
