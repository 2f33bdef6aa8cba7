#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "rounding.h"
#include "simd.h"

// The equations.
namespace adamod {

// The numbers of one step, computed in double and narrowed once.
template <class T>
struct Coefficients {
  T gradient;  // its sign, times the reciprocal of its scale where that is exact
  T keep1, take1, keep2, take2, keep3, take3;
  T rate, eps, decay;
  T correction1, correction2;  // 1 unless paper
  T unseen;                    // the v at which s is kept: 0 for skip_unseen, otherwise NaN, which equals nothing

  template <class U>
  Coefficients<U> as() const {
    return {U(gradient), U(keep1), U(take1), U(keep2),       U(take2),       U(keep3), U(take3),
            U(rate),     U(eps),   U(decay), U(correction1), U(correction2), U(unseen)};
  }
};

enum class Variant {
  kPlain,    // "code" without weight decay
  kDecayed,  // "code" with weight decay
  kAny,      // all options
};

enum class Draws {
  kNone,    // states are stored as they are
  kStates,  // exp_avg_sq and exp_avg_lr are rounded stochastically
  kAll,     // states are stored as they are, and all random bits beside them
};

template <Variant VARIANT, class T>
inline T learning_rate(T v, const Coefficients<T>& c) {
  return c.rate / (std::sqrt(VARIANT == Variant::kAny ? v / c.correction2 : v) + c.eps);
}

// One step of n elements in arithmetic of type T with states stored as S; returns how many have s < eta.
template <Variant VARIANT, Draws DRAWS, class T, class S>
CLONES int64_t update(T* __restrict param, const T* __restrict grad, S* __restrict exp_avg, S* __restrict exp_avg_sq,
                      S* __restrict exp_avg_lr, int n, const Coefficients<T> c, bool bounded_decay, uint32_t counter,
                      uint32_t* __restrict bits, uint32_t* __restrict bits2) {
  constexpr bool kAny = VARIANT == Variant::kAny;
  std::conditional_t<sizeof(T) == 4, int32_t, int64_t> clipped = 0;
  for (int i = 0; i < n; ++i, counter += kStride) {
    const T g = grad[i] * c.gradient;
    const T m = widen(exp_avg[i]) * c.keep1 + g * c.take1;
    const T v = widen(exp_avg_sq[i]) * c.keep2 + c.take2 * g * g;
    const T eta = learning_rate<VARIANT>(v, c);
    const T s_before = widen(exp_avg_lr[i]);
    const T s_after = s_before * c.keep3 + eta * c.take3;
    const T s = kAny && v == c.unseen ? s_before : s_after;
    // NaN wherever either is, as torch.minimum: an eta that is NaN makes s_after NaN.
    const T bound = eta < s || (kAny && eta != eta) ? eta : s;
    T p = param[i];
    if (VARIANT == Variant::kDecayed) p -= p * c.decay;
    if (kAny && c.decay != 0) p -= p * (bounded_decay && !(s >= eta) ? s / eta : T(1)) * c.decay;
    param[i] = p - bound * (kAny ? m / c.correction1 : m);
    clipped += s < eta;
    const uint32_t r = hash(counter);
    if constexpr (DRAWS == Draws::kStates) {
      exp_avg[i] = round_to_nearest(m);
      exp_avg_sq[i] = round_up_by(v, r & 0xFFFF);
      exp_avg_lr[i] = round_up_by(s, r >> 16);
    } else {
      exp_avg[i] = m;
      exp_avg_sq[i] = v;
      exp_avg_lr[i] = s;
    }
    if constexpr (DRAWS == Draws::kAll) {
      bits[i] = r;
      bits2[i] = hash(r ^ kSecond);
    }
  }
  return clipped;
}

}  // namespace adamod
