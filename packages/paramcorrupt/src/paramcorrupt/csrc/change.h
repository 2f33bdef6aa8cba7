#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "plan.h"
#include "powers.h"
#include "tiles.h"

// Dense changes a = scale sgn(g) |g|^power of weights, tile by tile, and how large what was really added is.
namespace paramcorrupt {

// Asks for elements that come some tiles later, as the processor does not for several lists at a time.
template <class S>
inline void fetch(const S* x) {
  for (int i = 0; i < kTile; i += int(64 / sizeof(S))) __builtin_prefetch(x + 8 * kTile + i);
}

enum class Form { kSign, kSame, kRoot, kSquare, kPower, kExactPower };

inline Form form_of(double power) {
  return power == 0     ? Form::kSign
         : power == 1   ? Form::kSame
         : power == 0.5 ? Form::kRoot
         : power == 2   ? Form::kSquare
                        : Form::kPower;
}

// A zero of either sign counts as +0, whose power is +0.
template <Form FORM, class T>
CLONES void change_tile(const T* __restrict g, double* __restrict a, double scale, double power, int n) {
  for (int i = 0; i < n; ++i) {
    const double x = g[i] + T(0), size = std::abs(x);
    if constexpr (FORM == Form::kSign) a[i] = x > 0 ? scale : x < 0 ? -scale : 0;
    if constexpr (FORM == Form::kSame) a[i] = scale * x;
    if constexpr (FORM == Form::kRoot) a[i] = scale * std::copysign(std::sqrt(size), x);
    if constexpr (FORM == Form::kSquare) a[i] = scale * std::copysign(size * size, x);
    if constexpr (FORM == Form::kExactPower) a[i] = scale * std::copysign(std::pow(size, power), x);
    if constexpr (FORM == Form::kPower) a[i] = scale * std::copysign(power_of<T>(size, power), x);
  }
}

struct Change {
  double scale, power;
  Form form;

  Change(double scale, double power) : scale(scale), power(power), form(form_of(power)) {}

  // Of n elements of a gradient of this type, for weights of type `to`.
  void operator()(Type to, Type type, const void* gradient, int64_t begin, Tile<double>& a, int n) const {
    with_type(type, [&]<class S>(S) {
      Tile<Arithmetic<S>> tile;
      fetch(static_cast<const S*>(gradient) + begin);
      const auto* g = load(static_cast<const S*>(gradient) + begin, tile, n);
      switch (form == Form::kPower && to == Type::kDouble ? Form::kExactPower : form) {
        case Form::kSign:
          return change_tile<Form::kSign>(g, a.values, scale, power, n);
        case Form::kSame:
          return change_tile<Form::kSame>(g, a.values, scale, power, n);
        case Form::kRoot:
          return change_tile<Form::kRoot>(g, a.values, scale, power, n);
        case Form::kSquare:
          return change_tile<Form::kSquare>(g, a.values, scale, power, n);
        case Form::kExactPower:
          return change_tile<Form::kExactPower>(g, a.values, scale, power, n);
        case Form::kPower:
          return change_tile<Form::kPower>(g, a.values, scale, power, n);
      }
    });
  }
};

// w + a in the type of the arithmetic, rounded once into that of w.
template <class S>
inline S sum_of(S w, double a) {
  return narrow<S>(widen(w) + Arithmetic<S>(a));
}

// to = from + a and |to - from|; the number of elements that differ.
template <class S>
CLONES int add_tile(const S* __restrict from, const double* __restrict a, Signed<S>* __restrict to,
                    double* __restrict moved, int n) {
  int changed = 0;
  for (int i = 0; i < n; ++i) {
    const S sum = sum_of(from[i], a[i]);
    const auto before = widen(from[i]), after = widen(sum);
    changed += before != after;
    moved[i] = std::abs(double(after) - double(before));
    to[i] = std::bit_cast<Signed<S>>(sum);
  }
  return changed;
}

// --- norms ----------------------------------------------------------------------------------------------------------

inline constexpr int kLanes = 32;

// The exponent p of a norm whose dual form is the power.
inline double norm_of(double power) { return power == 0 ? std::numeric_limits<double>::infinity() : 1 + 1 / power; }

// Of magnitudes: the sum of p-th powers, or the greatest bits, which order as magnitudes do, a NaN last.
template <class Each>
inline double sum_each(const double* x, int n, const Each& each) {
  double lanes[kLanes] = {};
  int i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int k = 0; k < kLanes; ++k) lanes[k] += each(x[i + k]);
  for (int half = kLanes / 2; half; half /= 2)
    for (int k = 0; k < half; ++k) lanes[k] += lanes[k + half];
  for (; i < n; ++i) lanes[0] += each(x[i]);
  return lanes[0];
}

CLONES inline double sum_of_squares(const double* x, int n) {
  return sum_each(x, n, [](double y) { return y * y; });
}

template <class T>
CLONES void raise_tile(double* x, double p, int n) {
  for (int i = 0; i < n; ++i) x[i] = power_of<T>(x[i], p);
}

CLONES inline void raise_tile_to_3_or_4(double* x, bool four, int n) {
  for (int i = 0; i < n; ++i) x[i] = x[i] * x[i] * (four ? x[i] * x[i] : x[i]);
}

CLONES inline double sum(const double* x, int n) {
  return sum_each(x, n, [](double y) { return y; });
}

CLONES inline double largest(const double* x, int n) {
  int64_t bits = 0;
  for (int i = 0; i < n; ++i) bits = std::max(bits, std::bit_cast<int64_t>(x[i]));
  return std::bit_cast<double>(bits);
}

// What changed in one piece.
struct Moved {
  int64_t changed = 0;
  double size = 0;  // the sum of p-th powers, or the greatest

  template <class T>
  void add(double* moved, double p, int n) {
    if (p == 2) {
      size += sum_of_squares(moved, n);
    } else if (std::isinf(p)) {
      size = greater(size, largest(moved, n));
    } else {
      p == 3 || p == 4 ? raise_tile_to_3_or_4(moved, p == 4, n) : raise_tile<T>(moved, p, n);
      size += sum(moved, n);
    }
  }

  static double greater(double x, double y) { return x > y || x != x ? x : y; }
};

// How many elements changed in all pieces, and the p-norm.
inline std::array<double, 2> total_of(const std::vector<Moved>& pieces, double p) {
  Moved total;
  for (const Moved& piece : pieces) {
    total.changed += piece.changed;
    total.size = std::isinf(p) ? Moved::greater(total.size, piece.size) : total.size + piece.size;
  }
  const double norm = p == 2 ? std::sqrt(total.size) : std::isinf(p) ? total.size : std::pow(total.size, 1 / p);
  return {double(total.changed), norm};
}

inline Tensor summary_of(const std::vector<Moved>& pieces, double p) {
  const Tensor summary = new_vector(2, aoti_torch_dtype_float64());
  std::ranges::copy(total_of(pieces, p), summary.mutable_data_ptr<double>());
  return summary;
}

}  // namespace paramcorrupt
