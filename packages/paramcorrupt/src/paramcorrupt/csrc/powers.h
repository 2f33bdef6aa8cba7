#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <limits>

#include "numbers.h"

// Powers of magnitudes in float64.
namespace paramcorrupt {

inline constexpr auto kInverseFactorials = [] {
  std::array<double, 14> inverse{1};
  double factorial = 1;
  for (int k = 1; k < 14; ++k) inverse[k] = 1 / (factorial *= k);
  return inverse;
}();

// 2^t to some units of the last place, 0 below the normal numbers.
inline double exp2_of(double t) {
  constexpr double kShift = 0x1.8p52, kInfinity = std::numeric_limits<double>::infinity();
  const double bounded = t > -1100 ? t < 1100 ? t : 1100 : -1100;
  const double shifted = bounded + kShift, whole = shifted - kShift;  // whole: the low bits of `shifted`
  const double z = (bounded - whole) * 0x1.62e42fefa39efp-1;          // < 0.35: the series ends below 2^-57
  double y = kInverseFactorials[13];
#pragma GCC unroll 13
  for (int k = 12; k >= 0; --k) y = y * z + kInverseFactorials[k];
  const double scaled = std::bit_cast<double>(std::bit_cast<uint64_t>(y) + (std::bit_cast<uint64_t>(shifted) << 52));
  return whole < -1022 ? 0 : whole > 1023 ? kInfinity : scaled;
}

// The natural logarithm of a positive normal number, to some units of its last place.
inline double log_of(double x) {
  constexpr uint64_t kRoot = 0x3FE6A09E667F3BCD;  // the bits of sqrt(1/2): it and its double enclose m
  const uint64_t above = std::bit_cast<uint64_t>(x) - kRoot;
  const double m = std::bit_cast<double>((above & 0x000FFFFFFFFFFFFF) + kRoot);
  const double biased = std::bit_cast<double>((above >> 52) + 0x4330000000000000) - 0x1p52;
  const double exponent = biased < 2048 ? biased : biased - 4096;
  const double s = (m - 1) / (m + 1), q = s * s;  // q < 0.03: the series ends below 2^-57
  double y = 1.0 / 21;
#pragma GCC unroll 9
  for (int k = 19; k >= 3; k -= 2) y = y * q + 1.0 / k;
  // The upper 32 bits of ln 2 times the exponent are exact.
  return exponent * 0x1.62e42feep-1 + (exponent * 0x1.a39ef35793c76p-33 + (2 * s + 2 * s * q * y));
}

// x^power of x >= 0 and power > 0. Of what was a float all but 0, infinity and NaN is a normal number.
inline double power_of_float(double x, double power) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity(), kLog2E = 0x1.71547652b82fep0;
  const double y = exp2_of(power * (log_of(x) * kLog2E));
  return x > 0 && x < kInfinity ? y : x;
}

template <class T>
inline double power_of(double x, double power) {
  if constexpr (sizeof(T) == 8)
    return std::pow(x, power);
  else
    return power_of_float(x, power);
}

}  // namespace paramcorrupt
