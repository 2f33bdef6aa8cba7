// The scores of a mixture's components, their logsumexp, and the gradients of both.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <limits>
#include <optional>
#include <tuple>

#include "call.h"
#include "rows.h"

namespace vade_robust {
namespace {

constexpr double kLog2Pi = 1.83787706640934548356;
constexpr int64_t kChunk = 1024;                // rows whose part of the parameters' gradients is summed at once
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
  const T* log_scale;
  Scratch<T> precision = make_scratch<T>(count * columns), constant = make_scratch<T>(count);

  Components(const Tensor& log_weight, const Tensor& centers, const Tensor& scales)
      : count(centers.size(0)), columns(centers.size(1)), centers(data<T>(centers)), log_scale(data<T>(scales)) {
    const T* weight = data<T>(log_weight);
    for (int64_t c = 0; c < count; ++c) {
      double sum = double(columns) * kLog2Pi;
      for (int64_t d = 0; d < columns; ++d) sum += double(log_scale[c * columns + d]);
      constant[size_t(c)] = T(double(weight[c]) - 0.5 * sum);
    }
    vade_robust::run(*this, 0, count * columns);
  }

  template <int BYTES>
  INLINE void run(int64_t begin, int64_t end) const {
    using V = Vector<T, BYTES>;
    for (int64_t i = begin; i < end; i += kLanes<V>) {
      const int64_t n = std::min<int64_t>(kLanes<V>, end - i);
      store(exp(V(-load<V>(log_scale + i, n))), precision.get() + i, n);
    }
  }
};

// e^x in place.
template <class V>
INLINE void exponentiate(Element<V>* x, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes<V>) store(exp(load<V>(x + i)), x + i);
}

template <class T>
struct Scores {
  const Latents<T>& z;
  const Components<T>& components;
  Matrix<T> a;
  T* lse;

  template <int BYTES>
  INLINE void run(int64_t begin, int64_t end) const {
    const auto scratch = make_scratch<T>((components.count + 2 * kColumns) * kRows);
    T *mean = scratch.get(), *variance = mean + kColumns * kRows, *sums = variance + kColumns * kRows;
    for (int64_t tile = begin; tile < end; ++tile) {
      if (z.log_var.data)
        score<Vector<T, BYTES>, true>(tile * kRows, mean, variance, sums);
      else
        score<Vector<T, BYTES>, false>(tile * kRows, mean, variance, sums);
    }
  }

  template <class V, bool SPREAD>
  INLINE void score(int64_t row, T* mean, T* variance, T* sums) const {
    for (int64_t i = 0; i < components.count * kRows; i += kLanes<V>) store(V{}, sums + i);
    for (int64_t d = 0; d < components.columns; d += kColumns) {
      const int64_t n = std::min(kColumns, components.columns - d);
      read_columns<V>(z.mean, row, kRows, d, d + n, mean, kRows);
      if constexpr (SPREAD) {
        read_columns<V>(z.log_var, row, kRows, d, d + n, variance, kRows);
        exponentiate<V>(variance, n * kRows);
      }
      for (int64_t c = 0; c < components.count; ++c)
        for (int64_t r = 0; r < kRows; r += kUnroll * kLanes<V>)
          add<V, SPREAD>(mean + r, variance + r, c * components.columns + d, n, sums + c * kRows + r);
    }
    for (int64_t r = 0; r < kRows && row + r < a.rows; r += kLanes<V>) finish<V>(row + r, sums + r);
    for (int64_t c = (components.count - 1) / kColumns * kColumns; c >= 0; c -= kColumns)
      write_columns<V>(sums + c * kRows, kRows, a, row, kRows, c, std::min(c + kColumns, components.count));
  }

  // Adds sum_d (exp(lv_d) + (mu_d - m_cd)^2) / exp(ls_cd) over a block of columns.
  template <class V, bool SPREAD>
  INLINE void add(const T* mean, const T* variance, int64_t parameter, int64_t columns, T* sums) const {
    constexpr int L = kLanes<V>;
    const T *center = components.centers + parameter, *precision = components.precision.get() + parameter;
    V part[kUnroll] = {};
    for (int64_t d = 0; d < columns; ++d) {
      const V m = fill<V>(center[d]), p = fill<V>(precision[d]);
#pragma GCC unroll 4
      for (int u = 0; u < kUnroll; ++u) {
        const V difference = load<V>(mean + d * kRows + u * L) - m;
        V square = difference * difference;
        if constexpr (SPREAD) square += load<V>(variance + d * kRows + u * L);
        part[u] += square * p;
      }
    }
#pragma GCC unroll 4
    for (int u = 0; u < kUnroll; ++u) store(V(load<V>(sums + u * L) + part[u]), sums + u * L);
  }

  template <class V>
  INLINE void finish(int64_t row, T* sums) const {
    constexpr T kInfinity = std::numeric_limits<T>::infinity();
    V most = fill<V>(-kInfinity);
    for (int64_t c = 0; c < components.count; ++c) {
      const V score = components.constant[size_t(c)] - T(0.5) * load<V>(sums + c * kRows);
      most = score > most ? score : most;
      store(score, sums + c * kRows);
    }
    const V shift = (most < kInfinity) & (most > -kInfinity) ? most : V{};
    V total = {};
    for (int64_t c = 0; c < components.count; ++c) total += exp(V(load<V>(sums + c * kRows) - shift));
    const V result = total == T(0) ? fill<V>(-kInfinity) : shift + log(total);
    store(result, lse + row, std::min<int64_t>(kLanes<V>, a.rows - row));
  }
};

// Chunks of rows: the gradients of their latents, and their part of the sums that are the parameters' gradients.
template <class T>
struct Gradients {
  const Latents<T>& z;
  const Components<T>& components;
  Matrix<const T> grad_a, a;
  const T *grad_lse, *lse;
  Matrix<T> grad_mean, grad_log_var;
  int64_t first;  // of the chunks that are kept at a time
  T* parts;

  int64_t part_size() const { return components.count * (1 + 2 * components.columns); }

  template <int BYTES>
  INLINE void run(int64_t begin, int64_t end) const {
    const auto scratch = make_scratch<T>((components.count + 4 * kColumns) * kChunk);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      T* part = parts + (chunk - first) * part_size();
      if (z.log_var.data)
        differentiate<Vector<T, BYTES>, true>(chunk * kChunk, scratch.get(), part);
      else
        differentiate<Vector<T, BYTES>, false>(chunk * kChunk, scratch.get(), part);
    }
  }

  template <class V, bool SPREAD>
  INLINE void differentiate(int64_t row, T* scratch, T* part) const {
    constexpr int64_t kPair = 2 * kLanes<V>;
    const int64_t count = components.count, columns = components.columns;
    const int64_t rows = (std::min(kChunk, a.rows - row) + kPair - 1) / kPair * kPair;
    T *mean = scratch, *variance = mean + kColumns * kChunk, *by_mean = variance + kColumns * kChunk,
      *by_variance = by_mean + kColumns * kChunk, *weights = by_variance + kColumns * kChunk;
    for (int64_t c = 0; c < count; c += kColumns) {
      const int64_t n = std::min(kColumns, count - c);
      weigh<V>(row, rows, c, n, mean, weights + c * kChunk);
      for (int64_t i = c; i < c + n; ++i) part[i] = sum_of<V>(weights + i * kChunk, rows);
    }
    for (int64_t d = (columns - 1) / kColumns * kColumns; d >= 0; d -= kColumns) {
      const int64_t n = std::min(kColumns, columns - d);
      read_columns<V>(z.mean, row, rows, d, d + n, mean, kChunk);
      if constexpr (SPREAD) read_columns<V>(z.log_var, row, rows, d, d + n, variance, kChunk);
      for (int64_t i = 0; i < n; ++i) {
        const int64_t at = i * kChunk;
        if constexpr (SPREAD) exponentiate<V>(variance + at, rows);
        std::fill_n(by_mean + at, rows, T(0));
        std::fill_n(by_variance + at, rows, T(0));
        for (int64_t c = 0; c < count; ++c)
          pull<V, SPREAD>(weights + c * kChunk, mean + at, variance + at, by_mean + at, by_variance + at, rows,
                          c * columns + d + i, part + count);
        if constexpr (SPREAD)
          for (int64_t r = 0; r < rows; r += kLanes<V>)
            store(V(T(-0.5) * load<V>(variance + at + r) * load<V>(by_variance + at + r)), by_variance + at + r);
      }
      write_columns<V>(by_mean, kChunk, grad_mean, row, rows, d, d + n);
      if constexpr (SPREAD) write_columns<V>(by_variance, kChunk, grad_log_var, row, rows, d, d + n);
    }
  }

  // W = grad_a + grad_lse exp(a - lse) of n components, 0 where there are no rows.
  template <class V>
  INLINE void weigh(int64_t row, int64_t rows, int64_t c, int64_t n, T* scores, T* weights) const {
    read_columns<V>(a, row, rows, c, c + n, scores, kChunk);
    read_columns<V>(grad_a, row, rows, c, c + n, weights, kChunk);
    for (int64_t r = 0; r < rows; r += kLanes<V>) {
      const int64_t left = std::clamp<int64_t>(a.rows - row - r, 0, kLanes<V>);
      const V total = load<V>(lse + (left ? row + r : 0), left), grad = load<V>(grad_lse + (left ? row + r : 0), left);
      for (int64_t i = 0; i < n; ++i) {
        T* w = weights + i * kChunk + r;
        const V weight = load<V>(w) + grad * exp(V(load<V>(scores + i * kChunk + r) - total));
        store(V(numbers<V>() < Element<Integers<V>>(left) ? weight : V{}), w);
      }
    }
  }

  template <class V>
  INLINE T sum_of(const T* x, int64_t count) const {
    V sums[2] = {};
    for (int64_t i = 0; i < count; i += 2 * kLanes<V>) {
      sums[0] += load<V>(x + i);
      sums[1] += load<V>(x + i + kLanes<V>);
    }
    return sum(V(sums[0] + sums[1]));
  }

  // What one component and one column give.
  template <class V, bool SPREAD>
  INLINE void pull(const T* __restrict weights, const T* __restrict mean, const T* __restrict variance,
                   T* __restrict by_mean, T* __restrict by_variance, int64_t rows, int64_t parameter, T* part) const {
    constexpr int L = kLanes<V>;
    const V m = fill<V>(components.centers[parameter]), p = fill<V>(components.precision[size_t(parameter)]);
    V by_center[2] = {}, by_scale[2] = {};
    for (int64_t r = 0; r < rows; r += 2 * L) {
#pragma GCC unroll 2
      for (int u = 0; u < 2; ++u) {
        const int64_t at = r + u * L;
        const V w = load<V>(weights + at), difference = load<V>(mean + at) - m, along = w * p;
        V square = difference * difference;
        if constexpr (SPREAD) {
          square += load<V>(variance + at);
          store(V(load<V>(by_variance + at) + along), by_variance + at);
        }
        store(V(load<V>(by_mean + at) - along * difference), by_mean + at);
        by_center[u] += along * difference;
        by_scale[u] += w * (square * p - T(1));
      }
    }
    part[parameter] = sum(V(by_center[0] + by_center[1]));
    part[components.count * components.columns + parameter] = T(0.5) * sum(V(by_scale[0] + by_scale[1]));
  }
};

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
    const Components<T> components(log_weight, centers, log_scale);
    const Scores<T> task{z, components, {mutable_data<T>(a), shape.rows, shape.count}, mutable_data<T>(lse)};
    const int64_t tiles = (shape.rows + kRows - 1) / kRows;
    torch::stable::parallel_for(0, tiles, grain(kRows * shape.count * shape.columns),
                                [&](int64_t begin, int64_t end) { run(task, begin, end); });
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
    const Components<T> components(log_weight, centers, log_scale);
    const auto matrix = [&](const Tensor& x, int64_t columns) {
      return Matrix<const T>{data<T>(x), shape.rows, columns};
    };
    Gradients<T> task{z,
                      components,
                      matrix(grad_a, shape.count),
                      matrix(a, shape.count),
                      data<T>(grad_lse),
                      data<T>(lse),
                      {mutable_data<T>(grad_mean), shape.rows, shape.columns},
                      {mutable_data<T>(grad_log_var), shape.rows, shape.columns},
                      0,
                      nullptr};
    const int64_t chunks = (shape.rows + kChunk - 1) / kChunk, size = task.part_size();
    const int64_t kept = std::min(chunks, std::max<int64_t>(16, kPartial / std::max<int64_t>(size, 1)));
    const auto parts = make_scratch<T>(kept * size);
    const auto sums = make_scratch<double>(size);
    std::fill_n(sums.get(), size, 0.0);
    task.parts = parts.get();
    for (; task.first < chunks; task.first += kept) {
      const int64_t last = std::min(chunks, task.first + kept);
      torch::stable::parallel_for(task.first, last, 1, [&](int64_t begin, int64_t end) { run(task, begin, end); });
      torch::stable::parallel_for(0, size, kGrain, [&](int64_t begin, int64_t end) {
        for (int64_t chunk = 0; chunk < last - task.first; ++chunk)
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
