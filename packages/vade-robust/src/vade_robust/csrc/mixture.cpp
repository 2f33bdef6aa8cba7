// The scores of a mixture's components, their logsumexp, and the gradients of both.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <limits>
#include <optional>
#include <tuple>

#include "call.h"
#include "matrix.h"

namespace vade_robust {
namespace {

constexpr double kLog2Pi = 1.83787706640934548356;
constexpr int64_t kChunk = 1024;          // rows whose part of the parameters' gradients is summed at once
constexpr int64_t kStride = kChunk + 16;  // of columns of a chunk, which would share lines of the cache without 16
constexpr int64_t kPartial = int64_t(1) << 23;  // numbers of such parts that are kept, unless 16 parts are more

template <class T>
struct Latents {
  Matrix<const T> mean, log_var;  // without data where there is none
};

// Parameters as the loops take them: [K, D] and [K].
template <class T>
struct Components {
  int64_t count, columns;
  const T* centers;
  Scratch<T> precision = make_scratch<T>(count * columns), constant = make_scratch<T>(count);

  // Of the numbers that are summed over rows: the gradients of all parameters.
  int64_t part_size() const { return count * (1 + 2 * columns); }
};

// What the gradients are computed from besides the inputs.
template <class T>
struct Received {
  Matrix<const T> grad_a, a;
  const T *grad_lse, *lse;
};

}  // namespace
}  // namespace vade_robust

#define KERNELS "mixture_lanes.h"
#include "widths.h"

namespace vade_robust {
namespace {

struct Shape {
  ScalarType type;
  int64_t rows, columns, count;
};

Shape check_mixture(const Tensor& mean, const std::optional<Tensor>& log_var, const Tensor& log_weight,
                    const Tensor& centers, const Tensor& log_scale) {
  STD_TORCH_CHECK(mean.dim() == 2 && log_weight.dim() == 1, "mean must be [N, D] and log_weight [K]");
  const Shape shape{mean.scalar_type(), mean.size(0), mean.size(1), log_weight.size(0)};
  check(mean, shape.type, {shape.rows, shape.columns});
  if (log_var) check(*log_var, shape.type, {shape.rows, shape.columns});
  check(log_weight, shape.type, {shape.count});
  check(centers, shape.type, {shape.count, shape.columns});
  check(log_scale, shape.type, {shape.count, shape.columns});
  return shape;
}

template <class T>
Components<T> components_of(const Shape& shape, const Tensor& log_weight, const Tensor& centers, const Tensor& scales) {
  Components<T> result{shape.count, shape.columns, data<T>(centers)};
  const T *weight = data<T>(log_weight), *log_scale = data<T>(scales);
  for (int64_t c = 0; c < shape.count; ++c) {
    double sum = double(shape.columns) * kLog2Pi;
    for (int64_t d = 0; d < shape.columns; ++d) sum += double(log_scale[c * shape.columns + d]);
    result.constant[size_t(c)] = T(double(weight[c]) - 0.5 * sum);
  }
  WIDEST(invert<T>)(log_scale, result.precision.get(), shape.count * shape.columns);
  return result;
}

template <class T>
Latents<T> latents(const Shape& shape, const Tensor& mean, const std::optional<Tensor>& log_var) {
  const T* spread = log_var ? data<T>(*log_var) : nullptr;
  return {{data<T>(mean), shape.rows, shape.columns}, {spread, shape.rows, shape.columns}};
}

std::tuple<Tensor, Tensor> mixture_scores(const Tensor& mean, const std::optional<Tensor>& log_var,
                                          const Tensor& log_weight, const Tensor& centers, const Tensor& log_scale) {
  const Shape shape = check_mixture(mean, log_var, log_weight, centers, log_scale);
  const Tensor a = empty({shape.rows, shape.count}, shape.type), lse = empty({shape.rows}, shape.type);
  with_type(mean, [&]<class T>(T) {
    const Latents<T> z = latents<T>(shape, mean, log_var);
    const Components<T> components = components_of<T>(shape, log_weight, centers, log_scale);
    const Matrix<T> scores{mutable_data<T>(a), shape.rows, shape.count};
    const auto kernel = WIDEST(score<T>);
    const int64_t tiles = (shape.rows + kRows - 1) / kRows;
    torch::stable::parallel_for(0, tiles, grain(kRows * shape.count * shape.columns), [&](int64_t begin, int64_t end) {
      [[maybe_unused]] const WithoutSubnormals guard;
      kernel(z, components, scores, mutable_data<T>(lse), begin, end);
    });
  });
  return {a, lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> mixture_scores_backward(
    const Tensor& grad_a, const Tensor& grad_lse, const Tensor& a, const Tensor& lse, const Tensor& mean,
    const std::optional<Tensor>& log_var, const Tensor& log_weight, const Tensor& centers, const Tensor& log_scale) {
  const Shape shape = check_mixture(mean, log_var, log_weight, centers, log_scale);
  for (const Tensor* x : {&grad_a, &a}) check(*x, shape.type, {shape.rows, shape.count});
  for (const Tensor* x : {&grad_lse, &lse}) check(*x, shape.type, {shape.rows});
  const Tensor grad_mean = empty({shape.rows, shape.columns}, shape.type);
  const Tensor grad_log_var = log_var ? empty({shape.rows, shape.columns}, shape.type) : empty({0}, shape.type);
  const Tensor grad_weight = empty({shape.count}, shape.type);
  const Tensor grad_centers = empty({shape.count, shape.columns}, shape.type);
  const Tensor grad_scale = empty({shape.count, shape.columns}, shape.type);
  with_type(mean, [&]<class T>(T) {
    const Latents<T> z = latents<T>(shape, mean, log_var);
    const Components<T> components = components_of<T>(shape, log_weight, centers, log_scale);
    const Received<T> received{{data<T>(grad_a), shape.rows, shape.count},
                               {data<T>(a), shape.rows, shape.count},
                               data<T>(grad_lse),
                               data<T>(lse)};
    const Matrix<T> by_mean{mutable_data<T>(grad_mean), shape.rows, shape.columns};
    const Matrix<T> by_log_var{mutable_data<T>(grad_log_var), shape.rows, shape.columns};
    const auto kernel = WIDEST(differentiate<T>);
    const int64_t chunks = (shape.rows + kChunk - 1) / kChunk, size = components.part_size();
    const int64_t kept = std::min(chunks, std::max<int64_t>(16, kPartial / std::max<int64_t>(size, 1)));
    const auto parts = make_scratch<T>(kept * size);
    const auto sums = make_scratch<double>(size);
    std::fill_n(sums.get(), size, 0.0);
    for (int64_t first = 0; first < chunks; first += kept) {
      const int64_t last = std::min(chunks, first + kept);
      torch::stable::parallel_for(first, last, 1, [&](int64_t begin, int64_t end) {
        [[maybe_unused]] const WithoutSubnormals guard;
        kernel(z, components, received, by_mean, by_log_var, first, parts.get(), begin, end);
      });
      torch::stable::parallel_for(0, size, kGrain, [&](int64_t begin, int64_t end) {
        for (int64_t chunk = 0; chunk < last - first; ++chunk)
          for (int64_t i = begin; i < end; ++i) sums[size_t(i)] += double(parts[size_t(chunk * size + i)]);
      });
    }
    const double* from = sums.get();
    for (const Tensor* x : {&grad_weight, &grad_centers, &grad_scale}) {
      T* to = mutable_data<T>(*x);
      for (int64_t i = 0; i < x->numel(); ++i) to[i] = T(*from++);
    }
  });
  return {grad_mean, grad_log_var, grad_weight, grad_centers, grad_scale};
}

}  // namespace
}  // namespace vade_robust

STABLE_TORCH_LIBRARY_IMPL(vade_robust, CPU, m) {
  m.impl("mixture_scores", TORCH_BOX(&vade_robust::mixture_scores));
  m.impl("mixture_scores_backward", TORCH_BOX(&vade_robust::mixture_scores_backward));
}
