#ifndef VADE_ROBUST_NUMBERS
#define VADE_ROBUST_NUMBERS

#include <bit>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>

#include "simd.h"

// Vectors for a register of BYTES bytes, their exponential and logarithm. widths.h includes what follows Scratch once
// for each width.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are passed only to what is inlined
#endif

#define INLINE inline __attribute__((always_inline))

namespace vade_robust {

// Memory aligned to a cache line.
template <class T>
using Scratch = std::unique_ptr<T[], void (*)(void*)>;

template <class T>
Scratch<T> make_scratch(int64_t count) {
  auto* data = static_cast<T*>(std::aligned_alloc(64, (size_t(count) * sizeof(T) / 64 + 1) * 64));
  if (!data) throw std::bad_alloc();
  return {data, std::free};
}

}  // namespace vade_robust

#endif

#ifdef WIDTH
namespace vade_robust::WIDTH {

template <class T, int BYTES>
struct Lanes {
  typedef T type __attribute__((vector_size(BYTES)));
  typedef T anywhere __attribute__((vector_size(BYTES), aligned(sizeof(T)), may_alias));
};

template <class T, int BYTES>
using Vector = typename Lanes<T, BYTES>::type;

template <class V>
using Element = std::remove_cvref_t<decltype(V()[0])>;

// Signed integers as wide as the elements; comparisons give them.
template <class V>
using Integers = decltype(V() < V());

template <class V>
inline constexpr int kLanes = int(sizeof(V) / sizeof(Element<V>));

template <class V>
INLINE V load(const Element<V>* x) {
  return *reinterpret_cast<const typename Lanes<Element<V>, int(sizeof(V))>::anywhere*>(x);
}

template <class V>
INLINE void store(const V& x, Element<V>* to) {
  *reinterpret_cast<typename Lanes<Element<V>, int(sizeof(V))>::anywhere*>(to) = x;
}

// The first `count` lanes, and zeros.
template <class V>
INLINE V load(const Element<V>* x, int64_t count) {
  V result = {};
  std::memcpy(&result, x, size_t(count) * sizeof(Element<V>));
  return result;
}

template <class V>
INLINE void store(const V& x, Element<V>* to, int64_t count) {
  std::memcpy(to, &x, size_t(count) * sizeof(Element<V>));
}

template <class V>
INLINE V fill(Element<V> x) {
  return x - V{};
}

// 0, 1, 2, ...
template <class V>
INLINE Integers<V> numbers() {
  Integers<V> result = {};
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<V>; ++i) result[i] = i;
  return result;
}

// Halves are added to halves: an order that does not depend on anything.
template <class V>
INLINE Element<V> sum(const V& x) {
  using T = Element<V>;
  if constexpr (kLanes<V> == 2) {
    return x[0] + x[1];
  } else {
    using Half = Vector<T, int(sizeof(V)) / 2>;
    Half halves[2];
    std::memcpy(halves, &x, sizeof(V));
    return sum(Half(halves[0] + halves[1]));
  }
}

template <class V>
INLINE Element<V> least(const V& x) {
  using T = Element<V>;
  if constexpr (kLanes<V> == 2) {
    return x[1] < x[0] ? x[1] : x[0];
  } else {
    using Half = Vector<T, int(sizeof(V)) / 2>;
    Half halves[2];
    std::memcpy(halves, &x, sizeof(V));
    return least(Half(halves[1] < halves[0] ? halves[1] : halves[0]));
  }
}

template <class V, class T, int N>
INLINE V polynomial(const V& x, const T (&coefficients)[N]) {
  V result = fill<V>(coefficients[N - 1]);
#pragma GCC unroll 16
  for (int i = N - 2; i >= 0; --i) result = result * x + coefficients[i];
  return result;
}

template <class T>
constexpr T power(int n) {
  T result = 1;
  for (; n > 0; --n) result *= 2;
  for (; n < 0; ++n) result /= 2;
  return result;
}

// Where the exponential is neither 0 nor infinite, and a little more.
template <class T>
inline constexpr T kLeast = std::is_same_v<T, float> ? T(-105) : T(-746);
template <class T>
inline constexpr T kGreatest = std::is_same_v<T, float> ? T(89) : T(710);

// x = n log 2 + r, and e^r = 1 + r + r^2 q(r) with the best q for |r| <= log(2) / 2. Returns e^r, for |n| < 2^20.
template <class V>
INLINE V exp_fraction(const V& x, Integers<V>& n) {
  using T = Element<V>;
  constexpr bool kFloat = std::is_same_v<T, float>;
  constexpr T kShift = kFloat ? T(0x1.8p23) : T(0x1.8p52);  // a sum with it is rounded to an integer
  constexpr T kHigh = kFloat ? T(0x1.63p-1) : T(0x1.62e42feep-1);
  constexpr T kLow = kFloat ? T(-2.12194440e-4) : T(1.90821492927058770002e-10);
  const V shifted = x * T(1.44269504088896340736) + kShift;
  n = Integers<V>(shifted) - Integers<V>(fill<V>(kShift));
  const V whole = shifted - kShift;
  const V r = (x - whole * kHigh) - whole * kLow;
  V q;
  if constexpr (kFloat) {
    constexpr T kQ[] = {0.5000000027f, 0.1666657665f, 0.04166637408f, 0.008363235073f, 0.001394121835f};
    q = polynomial(r, kQ);
  } else {
    constexpr T kQ[] = {0.500000000000000103,    0.166666666666666746,    0.0416666666666238165,
                        0.00833333333332212838,  0.00138888889173687596,  0.000198412698868316623,
                        2.48015210556474388e-05, 2.75572420649007406e-06, 2.76202025107191661e-07,
                        2.51101521924018494e-08};
    q = polynomial(r, kQ);
  }
  return (r + r * r * q) + T(1);
}

template <class V>
INLINE V power_of_two(const Integers<V>& n) {
  constexpr bool kFloat = std::is_same_v<Element<V>, float>;
  return V((n + (kFloat ? 127 : 1023)) << (kFloat ? 23 : 52));
}

// e^x 2^SHIFT where that is a normal number.
template <int SHIFT, class V>
INLINE V exp_normal(const V& x) {
  Integers<V> n;
  const V fraction = exp_fraction(x, n);
  return fraction * power_of_two<V>(n + SHIFT);
}

// e^x for kLeast <= x <= kGreatest, or NaN, to about a unit in the last place, subnormal results included.
template <class V>
INLINE V exp_within(const V& x) {
  Integers<V> n;
  const V fraction = exp_fraction(x, n);
  const Integers<V> half = n >> 1;  // 2^n may be out of range where the result is not
  return fraction * power_of_two<V>(half) * power_of_two<V>(n - half);
}

template <class V>
INLINE V exp(const V& x) {
  using T = Element<V>;
  const V high = x < kLeast<T> ? fill<V>(kLeast<T>) : x;
  return exp_within(V(high > kGreatest<T> ? fill<V>(kGreatest<T>) : high));
}

// x 2^-SHIFT for a normal x >= 0 or NaN. Where that is subnormal, its bits are those of an integer, found without the
// multiplication that takes processors a hundred times longer then.
template <int SHIFT, class V>
INLINE V scaled_down(const V& x) {
  using T = Element<V>;
  using I = Integers<V>;
  constexpr bool kFloat = std::is_same_v<T, float>;
  constexpr int kLowest = kFloat ? 126 : 1022;
  constexpr T kBound = power<T>(SHIFT - kLowest), kShift = kFloat ? T(0x1p23) : T(0x1p52);
  const auto subnormal = x < kBound;
  const V normal = (subnormal ? fill<V>(kBound) : x) * power<T>(-SHIFT);
  const V units = (subnormal ? x : V{}) * power<T>(kLowest + (kFloat ? 23 : 52) - SHIFT) + kShift;
  return subnormal ? V(I(units) - I(fill<V>(kShift))) : normal;
}

// log x to about a unit in the last place for a normal x > 0, infinity and NaN. Of 0 and of subnormal numbers it is
// about that of the smallest normal number.
// x = 2^n (1 + f) with 1 + f between the roots of 1/2 and of 2.
template <class V>
INLINE V log(const V& x) {
  using T = Element<V>;
  using I = Integers<V>;
  constexpr bool kFloat = std::is_same_v<T, float>;
  constexpr int kBits = kFloat ? 23 : 52;
  constexpr T kHigh = kFloat ? T(0x1.63p-1) : T(0x1.62e42feep-1);
  constexpr T kLow = kFloat ? T(-2.12194440e-4) : T(1.90821492927058770002e-10);
  using Integer = Element<I>;
  constexpr Integer kRoot = kFloat ? Integer(0x3F3504F3) : Integer(0x3FE6A09E667F3BCD);
  const I n = (I(x) - kRoot) >> kBits;
  const V f = V(I(x) - (n << kBits)) - T(1);
  const V power = __builtin_convertvector(n, V);
  V result;
  if constexpr (kFloat) {
    constexpr T kQ[] = {0.3333332654f, -0.2500028085f, 0.2000188008f, -0.1664348917f,
                        0.1419023161f, -0.1294340193f, 0.1279894276f, -0.08305495141f};
    const V square = f * f;
    result = f + ((f * square * polynomial(f, kQ) + power * kLow) - T(0.5) * square);
  } else {
    // 2 artanh s with s = f / (2 + f), and 2 s = f - s f.
    constexpr T kQ[] = {0.333333333333333487,  0.199999999999491189,  0.142857143132464089, 0.111111055288042752,
                        0.0909144716298822675, 0.0766578011307346915, 0.0730916299338082715};
    const V s = f / (f + T(2)), square = s * s, half = T(0.5) * f * f;
    result = f - (half - (s * (half + T(2) * square * polynomial(square, kQ)) + power * kLow));
  }
  result = power * kHigh + result;
  return x < std::numeric_limits<T>::infinity() ? result : x;
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

}  // namespace vade_robust::WIDTH

#endif
