// Random numbers of density ~ exp(-|z|^p), each from the seed and its place alone.
#include <torch/csrc/stable/library.h>

#include <numbers>

#include "change.h"
#include "philox.h"

namespace paramcorrupt {
namespace {

using torch::stable::detail::from;

inline double unit(uint32_t word) { return (double(word) + 0.5) * 0x1p-32; }

// The cosine of 2 pi u for u in (0, 1): of an eighth of a turn at most, by its series.
inline double cos_of_turns(double u) {
  const double half = std::abs(u - 0.5);                // cos 2 pi u = -cos 2 pi half
  const double turn = half < 0.25 ? half : 0.5 - half;  // in a quarter
  const bool sine = turn > 0.125;
  const double z = (sine ? 0.25 - turn : turn) * (2 * std::numbers::pi), q = z * z;
  double even = 1, odd = 1;
#pragma GCC unroll 9
  for (int k = 9; k >= 1; --k) even = 1 - even * q * (1.0 / ((2 * k - 1) * (2 * k)));
#pragma GCC unroll 9
  for (int k = 9; k >= 1; --k) odd = 1 - odd * q * (1.0 / ((2 * k) * (2 * k + 1)));
  const double size = sine ? odd * z : even;
  return half < 0.25 ? -size : size;
}

inline double normal(const Words& words) { return std::sqrt(-2 * log_of(unit(words.x))) * cos_of_turns(unit(words.y)); }

CLONES void fill_normal(double* z, uint64_t first, uint64_t seed, int n) {
  for (int i = 0; i < n; ++i) z[i] = normal(philox(first + i, 0, seed)) / std::numbers::sqrt2;
}

CLONES void fill_signs(double* z, uint64_t first, uint64_t seed, int n) {
  for (int i = 0; i < n; ++i) z[i] = 1.0 - 2.0 * double(philox(first + i, 0, seed).x & 1);
}

// A gamma number of a shape of 1 or more (Marsaglia and Tsang 2000): attempt k reads stream k.
double gamma_of(uint64_t counter, double shape, uint64_t seed) {
  const double d = shape - 1.0 / 3, c = 1 / std::sqrt(9 * d);
  for (uint64_t attempt = 1;; ++attempt) {
    const Words words = philox(counter, attempt, seed);
    const double x = normal(words), root = 1 + c * x, v = root * root * root;
    if (v > 0 && std::log(unit(words.z)) < 0.5 * x * x + d - d * v + d * std::log(v)) return d * v;
  }
}

void fill_powers(double* z, uint64_t first, uint64_t seed, double p, int n) {
  for (int i = 0; i < n; ++i) {
    const Words words = philox(first + i, 0, seed);
    const double size = std::pow(gamma_of(first + i, 1 / p + 1, seed), 1 / p) * unit(words.y);
    z[i] = words.x & 1 ? -size : size;
  }
}

template <class S>
CLONES void narrow_tile(const double* __restrict z, Signed<S>* __restrict to, double* __restrict size, int n) {
  for (int i = 0; i < n; ++i) {
    const S rounded = narrow<S>(Arithmetic<S>(z[i]));
    size[i] = std::abs(double(widen(rounded)));
    to[i] = std::bit_cast<Signed<S>>(rounded);
  }
}

void boxed_random_fill_(StableIValue* stack, uint64_t, uint64_t) {
  const TensorList a(stack[0]);
  const auto seed = uint64_t(argument<int64_t>(stack[1])), offset = uint64_t(argument<int64_t>(stack[2]));
  const auto p = argument<double>(stack[3]);
  const Plan<1> plan({&a});
  std::vector<Moved> sizes(plan.pieces());
  plan.run([&](const Job<1>& job, const Piece& piece) {
    with_type(job.types[0], [&]<class S>(S) {
      S* to = job.at<S>(0, piece.begin);
      Tile<double> z, size;
      Tile<Signed<S>> rounded;
      tiles(piece.size, [&](int64_t i, int n) {
        const uint64_t first = offset + uint64_t(job.start + piece.begin + i);
        if (p == 2)
          fill_normal(z.values, first, seed, n);
        else if (std::isinf(p))
          fill_signs(z.values, first, seed, n);
        else
          fill_powers(z.values, first, seed, p, n);
        narrow_tile<S>(z.values, rounded.values, size.values, n);
        sizes[piece.number].add<Arithmetic<S>>(size.values, p, n);
        std::memcpy(to + i, rounded.values, n * sizeof(S));
      });
    });
  });
  AtenTensorHandle norm;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(0, nullptr, nullptr, aoti_torch_dtype_float64(),
                                                  aoti_torch_device_type_cpu(), 0, &norm));
  const Tensor result(norm);
  *result.mutable_data_ptr<double>() = total_of(sizes, p)[1];
  stack[0] = from(result);
}

}  // namespace
}  // namespace paramcorrupt

STABLE_TORCH_LIBRARY_IMPL(paramcorrupt, CPU, m) { m.impl("random_fill_", paramcorrupt::boxed_random_fill_); }
