#pragma once

#include <cmath>

#include "tiles.h"

// T, which gradients are multiplied by: 1, |w| + eta, or the inverse of that.
namespace gasam {

enum class Form {
  kOnce,   // T g
  kTwice,  // T^2 g
  kSign,   // T sign(g)
};

template <int WEIGHTED, class T>
inline T weight(T w, T eta) {
  return WEIGHTED == 0 ? T(1) : WEIGHTED > 0 ? std::abs(w) + eta : 1 / (std::abs(w) + eta);
}

template <Form FORM, int WEIGHTED, class T>
CLONES void weigh(const T* __restrict g, const T* __restrict w, T eta, T* __restrict to, int n) {
  for (int i = 0; i < n; ++i) {
    const T t = weight<WEIGHTED>(WEIGHTED ? w[i] : T(0), eta);
    const T x = FORM == Form::kSign ? T(g[i] > 0) - T(g[i] < 0) : g[i];
    to[i] = FORM == Form::kTwice ? t * t * x : t * x;
  }
}

template <class Call>
inline void with_weighted(int64_t weighted, const Call& call) {
  if (weighted == 0) return call(std::integral_constant<int, 0>());
  if (weighted > 0) return call(std::integral_constant<int, 1>());
  return call(std::integral_constant<int, -1>());
}

// Where a form of the gradient is: in the gradient itself if nothing changes it, or in the tile.
template <class T>
inline const T* weighed(Form form, int64_t weighted, const T* g, const T* w, T eta, Tile<T>& tile, int n) {
  if (weighted == 0 && form != Form::kSign) return g;
  with_weighted(weighted, [&]<int WEIGHTED>(std::integral_constant<int, WEIGHTED>) {
    if (form == Form::kOnce) weigh<Form::kOnce, WEIGHTED>(g, w, eta, tile.values, n);
    if (form == Form::kTwice) weigh<Form::kTwice, WEIGHTED>(g, w, eta, tile.values, n);
    if (form == Form::kSign) weigh<Form::kSign, WEIGHTED>(g, w, eta, tile.values, n);
  });
  return tile.values;
}

}  // namespace gasam
