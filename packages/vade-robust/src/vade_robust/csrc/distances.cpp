// Squared distances between the rows of two matrices, and the nearest rows.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <limits>
#include <tuple>

#include "call.h"
#include "matrix.h"

#define KERNELS "distances_lanes.h"
#include "widths.h"

namespace vade_robust {
namespace {

Tensor squared_distances(const Tensor& x, const Tensor& y) {
  STD_TORCH_CHECK(x.dim() == 2 && y.dim() == 2, "rows must be [N, D] and [M, D]");
  const int64_t columns = x.size(1);
  check(x, x.scalar_type(), {x.size(0), columns});
  check(y, x.scalar_type(), {y.size(0), columns});
  const Tensor result = empty({x.size(0), y.size(0)}, x.scalar_type());
  with_type(x, [&]<class T>(T) {
    const Matrix<const T> from{data<T>(x), x.size(0), columns}, to{data<T>(y), y.size(0), columns};
    const Matrix<T> distances{mutable_data<T>(result), x.size(0), y.size(0)};
    const auto kernel = WIDEST(measure<T>);
    torch::stable::parallel_for(0, (x.size(0) + kRows - 1) / kRows, grain(kRows * y.size(0) * columns),
                                [&](int64_t begin, int64_t end) { kernel(from, to, distances, begin, end); });
  });
  return result;
}

std::tuple<Tensor, Tensor> knn(const Tensor& queries, const Tensor& points, int64_t k) {
  STD_TORCH_CHECK(queries.dim() == 2 && points.dim() == 2, "rows must be [N, D] and [M, D]");
  const int64_t rows = queries.size(0), columns = queries.size(1);
  check(queries, queries.scalar_type(), {rows, columns});
  check(points, queries.scalar_type(), {points.size(0), columns});
  STD_TORCH_CHECK(0 <= k && k <= points.size(0), "there are not k points");
  const Tensor distances = empty({rows, k}, queries.scalar_type()), index = empty({rows, k}, ScalarType::Long);
  if (k > 0)
    with_type(queries, [&]<class T>(T) {
      const Matrix<const T> from{data<T>(queries), rows, columns}, to{data<T>(points), points.size(0), columns};
      const Matrix<T> nearest{mutable_data<T>(distances), rows, k};
      const auto kernel = WIDEST(find<T>);
      torch::stable::parallel_for(
          0, (rows + kRows - 1) / kRows, grain(kRows * points.size(0) * columns),
          [&](int64_t begin, int64_t end) { kernel(from, to, nearest, mutable_data<int64_t>(index), begin, end); });
    });
  return {distances, index};
}

}  // namespace
}  // namespace vade_robust

STABLE_TORCH_LIBRARY_IMPL(vade_robust, CPU, m) {
  m.impl("squared_distances", TORCH_BOX(&vade_robust::squared_distances));
  m.impl("knn", TORCH_BOX(&vade_robust::knn));
}
