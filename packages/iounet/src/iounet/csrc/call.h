#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <array>
#include <utility>

#include "lanes.h"

// Tensors as the kernels take them.
namespace iounet {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline bool is_channels_last(const Tensor& x) {
  int64_t expected = 1;
  for (int dim : {1, 3, 2, 0}) {
    if (x.size(dim) != 1 && x.stride(dim) != expected) return false;
    expected *= x.size(dim);
  }
  return true;
}

// The tensor, copied where it is neither NCHW nor channels_last, and whether it is channels_last.
inline std::pair<Tensor, bool> dense(const Tensor& x) {
  if (x.is_contiguous()) return {x, false};
  if (is_channels_last(x)) return {x, true};
  return {torch::stable::contiguous(x), false};
}

inline Tensor dense(const Tensor& x, bool last) {
  return torch::stable::contiguous(x, last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

// Asks for large pages under memory that is about to be written first: of a result of 50 MB, the faults of its small
// pages would take half of the time, and do not get faster with threads.
inline void use_large_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kPage = 2 << 20;
  const uintptr_t begin = (uintptr_t(data) + kPage - 1) / kPage * kPage,
                  end = (uintptr_t(data) + bytes) / kPage * kPage;
  if (end > begin + kPage) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // advice only
#endif
}

inline Tensor empty(const std::array<int64_t, 4>& sizes, ScalarType type, bool last) {
  const Tensor result = torch::stable::empty(sizes, type, std::nullopt, std::nullopt, std::nullopt,
                                             last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
  use_large_pages(result.mutable_data_ptr(), result.numel() * result.element_size());
  return result;
}

// Boxes [K, 5] as the kernels read them. What users can get wrong has been refused in Python.
inline Tensor dense_boxes(const Tensor& boxes) {
  const ScalarType type = boxes.scalar_type();
  STD_TORCH_CHECK(boxes.dim() == 2 && boxes.size(1) == 5, "boxes must be [K, 5]");
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, "boxes must be float32 or float64");
  return torch::stable::contiguous(boxes);
}

inline void check_map(const Tensor& input) {
  STD_TORCH_CHECK(input.dim() == 4 && input.size(2) > 0 && input.size(3) > 0, "input must be [N, C, H, W]");
}

inline void check_grad(const Tensor& grad, const Tensor& boxes) {
  STD_TORCH_CHECK(grad.dim() == 4 && grad.size(0) == boxes.size(0), "grad must be [K, C, PH, PW]");
}

// Calls with a value of the type in which the tensor is stored.
template <class Call>
void with_type(const Tensor& x, const Call& call) {
  switch (x.scalar_type()) {
    case ScalarType::Double:
      return call(double());
    case ScalarType::Float:
      return call(float());
    case ScalarType::BFloat16:
      return call(BFloat16());
    case ScalarType::Half:
      return call(Half());
    default:
      STD_TORCH_CHECK(false, "unsupported dtype");
  }
}

}  // namespace iounet
