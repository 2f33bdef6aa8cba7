#pragma once

#include <cstring>

#include "numbers.h"

// Sums of products in float64, in an order that depends on nothing. A product of two float32 numbers is exact in it.
namespace gasam {

inline constexpr int kLanes = 8;
typedef double Lanes __attribute__((vector_size(8 * kLanes)));

template <class T>
inline void lanes_of(const T* from, Lanes& to) {
  typedef T Narrow __attribute__((vector_size(sizeof(T) * kLanes)));
  Narrow x;
  std::memcpy(&x, from, sizeof(x));
  to = __builtin_convertvector(x, Lanes);
}

inline double sum(const Lanes& x) { return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7])); }

template <class T>
CLONES double sum_of_squares(const T* x, int n) {
  Lanes sums[4] = {};
  int i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      Lanes a;
      lanes_of(x + i + k * kLanes, a);
      sums[k] += a * a;
    }
  }
  double rest = 0;
  for (; i < n; ++i) rest += double(x[i]) * double(x[i]);
  return sum((sums[0] + sums[1]) + (sums[2] + sums[3])) + rest;
}

// Adds <x, x>, <x, y> and <y, y>.
template <class T>
CLONES void add_products(const T* x, const T* y, int n, double* to) {
  Lanes xx[2] = {}, xy[2] = {}, yy[2] = {};
  int i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
#pragma GCC unroll 2
    for (int k = 0; k < 2; ++k) {
      Lanes a, b;
      lanes_of(x + i + k * kLanes, a);
      lanes_of(y + i + k * kLanes, b);
      xx[k] += a * a;
      xy[k] += a * b;
      yy[k] += b * b;
    }
  }
  to[0] += sum(xx[0] + xx[1]);
  to[1] += sum(xy[0] + xy[1]);
  to[2] += sum(yy[0] + yy[1]);
  for (; i < n; ++i) {
    const double a = x[i], b = y[i];
    to[0] += a * a;
    to[1] += a * b;
    to[2] += b * b;
  }
}

}  // namespace gasam
