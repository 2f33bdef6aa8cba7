#pragma once

#include "numbers.h"

// Sums of products in float64, in an order that depends on nothing. A product of two float32 numbers is exact in it.
namespace gasam {

inline constexpr int kLanes = 32;

inline double sum(double (&lanes)[kLanes]) {
  for (int n = kLanes / 2; n; n /= 2)
    for (int k = 0; k < n; ++k) lanes[k] += lanes[k + n];
  return lanes[0];
}

template <class T>
CLONES double sum_of_squares(const T* x, int n) {
  double lanes[kLanes] = {};
  int i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int k = 0; k < kLanes; ++k) {
      const double a = x[i + k];
      lanes[k] += a * a;
    }
  double total = sum(lanes);
  for (; i < n; ++i) total += double(x[i]) * double(x[i]);
  return total;
}

// Adds <x, x>, <x, y> and <y, y>.
template <class T>
CLONES void add_products(const T* x, const T* y, int n, double* to) {
  double xx[kLanes] = {}, xy[kLanes] = {}, yy[kLanes] = {};
  int i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int k = 0; k < kLanes; ++k) {
      const double a = x[i + k], b = y[i + k];
      xx[k] += a * a;
      xy[k] += a * b;
      yy[k] += b * b;
    }
  to[0] += sum(xx);
  to[1] += sum(xy);
  to[2] += sum(yy);
  for (; i < n; ++i) {
    const double a = x[i], b = y[i];
    to[0] += a * a;
    to[1] += a * b;
    to[2] += b * b;
  }
}

}  // namespace gasam
