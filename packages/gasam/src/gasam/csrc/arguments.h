#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "lists.h"
#include "numbers.h"

// What comes from PyTorch and what goes back.
namespace gasam {

using torch::stable::Tensor;

template <class Value>
Value argument(StableIValue value) {
  return torch::stable::detail::to<Value>(value);
}

inline Type type_of(AtenTensorHandle x) {
  static const int32_t codes[] = {aoti_torch_dtype_float32(), aoti_torch_dtype_float64(), aoti_torch_dtype_bfloat16(),
                                  aoti_torch_dtype_float16()};
  const int32_t code = get(aoti_torch_get_dtype, x);
  for (int type = 0; type < 4; ++type)
    if (code == codes[type]) return Type(type);
  STD_TORCH_CHECK(false, "unsupported dtype");
}

// The value of a tensor of one element.
inline double number(AtenTensorHandle x) {
  STD_TORCH_CHECK(get(aoti_torch_get_numel, x) == 1, "expected one number");
  double value = 0;
  with_type(type_of(x), [&]<class S>(S) { value = widen(*static_cast<const S*>(get(torch_get_const_data_ptr, x))); });
  return value;
}

inline double number_or(double otherwise, const std::optional<Tensor>& x) { return x ? number(x->get()) : otherwise; }

template <class Value>
const Value* vector_of(const Tensor& x, int64_t size) {
  STD_TORCH_CHECK(x.numel() == size && x.is_contiguous(), "a vector has the wrong size");
  return x.const_data_ptr<Value>();  // checks the dtype
}

inline Tensor new_tensor(std::vector<int64_t> sizes, int32_t dtype) {
  const int64_t stride = 1;
  AtenTensorHandle x;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(sizes.size()), sizes.data(), &stride, dtype,
                                                  aoti_torch_device_type_cpu(), 0, &x));
  return Tensor(x);
}

inline Tensor new_vector(int64_t size) { return new_tensor({size}, aoti_torch_dtype_float64()); }

}  // namespace gasam
