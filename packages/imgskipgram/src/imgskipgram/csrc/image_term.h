#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "simd.h"
#include "tile.h"

// The image term of one grounded word: its vector v against its own picture and others; loss, gradients and update.
namespace sgns {

enum class Objective { nce, margin, infonce };

inline constexpr double kMargin = 0.5;
inline constexpr double kTemperature = 0.07;

template <class T>
struct ImageTerm {
  T* v;
  T lock;
  T* const* z;      // [n], all different, the own first
  const T* weight;  // [n], how often each counts
  int n;
  T alpha;
  int columns;
  Objective objective;
  bool trained;  // are the pictures' vectors parameters too?
  // Results for each picture: -dL/dv = sum a z + b v, -dL/dz = a v + c z.
  T *a, *c;
  T* update;  // [columns]
};

template <class T>
inline __attribute__((always_inline)) T dot(const T* a, const T* b, int columns) {
  T sum[kBlock] = {}, all = 0;
  for (int i = 0; i < columns; i += kBlock) {
    for (int k = 0; k < kBlock; ++k) sum[k] += a[i + k] * b[i + k];
  }
  for (int k = 0; k < kBlock; ++k) all += sum[k];
  return all;
}

// In: a_k is v.z_k and c_k is z_k.z_k. Out: the coefficients; returns b and adds the loss.
template <class T>
T image_gradient(const ImageTerm<T>& t, T square, double& loss) {
  if (t.objective == Objective::nce) {
    double product = 1;  // of 1 + exp(-|f|), each at most 2
    for (int k = 0; k < t.n; ++k) {
      const double f = t.a[k], e = std::exp(-std::abs(f)), label = k == 0;
      loss += t.weight[k] * std::max(k == 0 ? -f : f, 0.);
      for (int i = 0; i < int(t.weight[k]); ++i) {
        product *= 1 + e;
        if (product > 0x1p+1000) loss += std::log(product), product = 1;
      }
      t.a[k] = T(t.weight[k] * (label - (f < 0 ? e : 1) / (1 + e)));
      t.c[k] = 0;
    }
    loss += std::log(product);
    return 0;
  }
  const double v = square > 0 ? 1 / std::sqrt(double(square)) : 0;
  double b = 0, sum = 0, pull = 0;
  for (int k = 0; k < t.n; ++k) {
    t.c[k] = t.c[k] > 0 ? T(1 / std::sqrt(double(t.c[k]))) : T(0);
    t.a[k] = T(t.a[k] * v * t.c[k]);  // the cosine
  }
  const double own = t.a[0];
  if (t.objective == Objective::infonce) {
    for (int k = 0; k < t.n; ++k) sum += t.weight[k] * std::exp((t.a[k] - own) / kTemperature);
    loss += std::log(sum);
  }
  for (int k = t.n - 1; k >= 0; --k) {
    const double cosine = t.a[k];
    double g;
    if (t.objective == Objective::infonce) {
      g = ((k == 0) - t.weight[k] * std::exp((cosine - own) / kTemperature) / sum) / kTemperature;
    } else if (k == 0) {
      g = pull;
    } else {
      const double hinge = t.weight[k] * std::max(0., kMargin - own + cosine);
      loss += hinge;
      g = hinge > 0 ? -double(t.weight[k]) : 0;
      pull -= g;
    }
    b -= g * cosine * v * v;
    const double z = t.c[k];
    t.a[k] = T(g * v * z);
    t.c[k] = T(-g * cosine * z * z);
  }
  return T(b);
}

template <class T>
CLONES void image_products(const ImageTerm<T>& t) {
  for (int k = 0; k < t.n; ++k) {
    t.a[k] = dot(t.v, t.z[k], t.columns);
    t.c[k] = t.objective == Objective::nce ? T(0) : dot(t.z[k], t.z[k], t.columns);
  }
}

template <class T>
CLONES void image_update(const ImageTerm<T>& t, T b) {
  for (int i = 0; i < t.columns; ++i) t.update[i] = b * t.v[i];
  for (int k = 0; k < t.n; ++k) {
    T* z = t.z[k];
    const T a = t.a[k], pull = t.alpha * a, keep = t.alpha * t.c[k];
    for (int i = 0; i < t.columns; ++i) t.update[i] += a * z[i];
    if (t.trained) {
      for (int i = 0; i < t.columns; ++i) z[i] += pull * t.v[i] + keep * z[i];
    }
  }
  const T rate = t.alpha * t.lock;
  for (int i = 0; i < t.columns; ++i) t.v[i] += rate * t.update[i];
}

// Returns the loss.
template <class T>
double image_step(const ImageTerm<T>& t) {
  double loss = 0;
  image_products(t);
  image_update(t, image_gradient(t, t.objective == Objective::nce ? T(0) : dot(t.v, t.v, t.columns), loss));
  return loss;
}

}  // namespace sgns
