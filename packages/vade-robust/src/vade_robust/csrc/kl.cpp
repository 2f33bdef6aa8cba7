// The divergence of t-SNE and its gradient, in two passes over the pairs: Z, and what depends on it.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <numeric>
#include <tuple>
#include <vector>

#include "points.h"

namespace vade_robust {
namespace {

// The map less its mean, and a column of ones: [B, width]. Its products with G have small errors, wherever the map is.
template <class T>
class Centred {
 public:
  const int64_t dimensions, width;

  explicit Centred(const Points<T>& y)
      : dimensions(y.dimensions),
        width((y.dimensions + kWidth / 2) / (kWidth / 2) * (kWidth / 2)),
        data_(make_scratch<T>(y.count * width)) {
    std::vector<double> means(size_t(y.dimensions), 0.0);
    for (int64_t i = 0; i < y.count; ++i)
      for (int64_t d = 0; d < dimensions; ++d) means[size_t(d)] += y.row(i)[d] / double(y.count);
    for (int64_t i = 0; i < y.count; ++i) {
      T* to = data_.get() + i * width;
      for (int64_t d = 0; d < dimensions; ++d) to[d] = T(y.row(i)[d] - means[size_t(d)]);
      to[dimensions] = 1;
      std::fill(to + dimensions + 1, to + width, T(0));
    }
  }

  const T* row(int64_t i) const { return data_.get() + i * width; }

 private:
  Scratch<T> data_;
};

}  // namespace
}  // namespace vade_robust

#define KERNELS "kl_lanes.h"
#include "widths.h"

namespace vade_robust {
namespace {

std::tuple<Tensor, Tensor> tsne_kl(const Tensor& y, const Tensor& p) {
  const int64_t count = y.size(0);
  STD_TORCH_CHECK(y.dim() == 2 && y.size(1) > 0 && y.is_contiguous(), "y must be [B, D], D > 0, and contiguous");
  STD_TORCH_CHECK(p.dim() == 2 && p.size(0) == count && p.size(1) == count && p.is_contiguous(),
                  "p must be [B, B] and contiguous");
  STD_TORCH_CHECK(p.scalar_type() == y.scalar_type(), "y and p must be of one dtype");
  const Tensor kl = torch::stable::new_empty(y, {}), gradient = torch::stable::new_empty(y, {count, y.size(1)});
  with_type(y, [&]<class T>(T) {
    T *divergence = static_cast<T*>(kl.mutable_data_ptr()), *to = static_cast<T*>(gradient.mutable_data_ptr());
    if (count < 2) {
      *divergence = 0;
      return void(std::fill_n(to, gradient.numel(), T(0)));
    }
    const Points<T> points(y);
    std::vector<double> sums(size_t(points.groups()), 0.0);
    const auto first = WIDEST(normalise<T>);
    torch::stable::parallel_for(0, (points.groups() + 1) / 2, 8,
                                [&](int64_t begin, int64_t end) { first(points, sums.data(), begin, end); });
    const double total = 2 * std::accumulate(sums.begin(), sums.end(), 0.0);
    const Centred<T> centred(points);
    const auto second = WIDEST(diverge<T>);
    torch::stable::parallel_for(0, points.groups(), 8, [&](int64_t begin, int64_t end) {
      second(points, centred, static_cast<const T*>(p.const_data_ptr()), T(1 / total), sums.data(), to, begin, end);
    });
    *divergence = T(std::accumulate(sums.begin(), sums.end(), 0.0) + std::log(total));
  });
  return {kl, gradient};
}

}  // namespace
}  // namespace vade_robust

STABLE_TORCH_LIBRARY_IMPL(vade_robust, CPU, m) { m.impl("tsne_kl", TORCH_BOX(&vade_robust::tsne_kl)); }
