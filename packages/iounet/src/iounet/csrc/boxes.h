#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <type_traits>
#include <vector>

#include "overlap.h"
#include "sorting.h"

// The arguments that all operators of suppression share.
namespace iounet {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Reads a vector or a matrix of any strides.
template <class T>
class Reader {
 public:
  explicit Reader(const Tensor& x)
      : data_(x.const_data_ptr<T>()), row_(x.stride(0)), column_(x.dim() > 1 ? x.stride(1) : 0) {}
  T operator()(int64_t row, int64_t column = 0) const { return data_[row * row_ + column * column_]; }
  Box<T> box(int64_t row) const { return {(*this)(row, 0), (*this)(row, 1), (*this)(row, 2), (*this)(row, 3)}; }

 private:
  const T* data_;
  int64_t row_, column_;
};

inline bool is_double(const Tensor& x) { return x.scalar_type() == ScalarType::Double; }

inline Tensor as(const Tensor& x, ScalarType type) { return x.scalar_type() == type ? x : torch::stable::to(x, type); }

template <class T>
Tensor as(const Tensor& x) {
  return as(x, std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float);
}

// Calls with a number of the type in which to compute: double or, also for halves, float.
template <class Call>
void with_accuracy(bool is_double, const Call& call) {
  is_double ? call(double()) : call(float());
}

inline void check(const Tensor& boxes, const Tensor& values, const std::optional<Tensor>& labels) {
  const int64_t n = boxes.size(0);
  STD_TORCH_CHECK(boxes.dim() == 2 && boxes.size(1) == 4, "boxes must be [N,4]");
  STD_TORCH_CHECK(n <= std::numeric_limits<int32_t>::max(), "too many boxes");
  STD_TORCH_CHECK(values.dim() == 1 && values.size(0) == n, "one value per box");
  STD_TORCH_CHECK(!labels || (labels->dim() == 1 && labels->size(0) == n), "one label per box");
}

// Rows in groups of one label each, by default one group of all.
struct Groups {
  std::vector<int32_t> rows;
  std::vector<int64_t> starts;  // and the end of the last

  // The rows keep their order within a group.
  Groups(std::vector<int32_t> order, const std::optional<Tensor>& labels) : rows(std::move(order)), starts{0} {
    const int64_t n = rows.size();
    if (labels && n) {
      const Tensor converted = as(*labels, ScalarType::Long);
      const Reader<int64_t> label(converted);
      std::vector<Item<uint64_t>> items(n);
      for (int64_t i = 0; i < n; ++i) items[i] = {uint64_t(label(rows[i])), rows[i]};
      stable_sort(items);
      for (int64_t i = 0; i < n; ++i) {
        rows[i] = items[i].row;
        if (i && items[i].key != items[i - 1].key) starts.push_back(i);
      }
    }
    if (n) starts.push_back(n);
  }

  // In as many tasks as pay, each with what `make` returns: calls that with the rows of a group and their number.
  template <class Make>
  void for_each(const Make& make) const {
    constexpr int64_t kBoxes = 4096;  // per task
    const int64_t groups = starts.size() - 1, n = rows.size();
    const int64_t grain = n <= kBoxes ? std::max<int64_t>(groups, 1) : std::max<int64_t>(groups * kBoxes / n, 1);
    torch::stable::parallel_for(0, groups, grain, [&](int64_t first, int64_t last) {
      auto call = make();
      for (int64_t g = first; g < last; ++g) call(rows.data() + starts[g], starts[g + 1] - starts[g]);
    });
  }
};

// Rows by decreasing value; of equal values the first row first, NaN before all.
template <class T>
std::vector<int32_t> by_decreasing(const Reader<T>& value, int64_t n) {
  std::vector<Item<Bits<T>>> items(n);
  for (int64_t i = 0; i < n; ++i) items[i] = {descending(value(i)), int32_t(i)};
  stable_sort(items);
  std::vector<int32_t> rows(n);
  for (int64_t i = 0; i < n; ++i) rows[i] = items[i].row;
  return rows;
}

}  // namespace iounet
