#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include "lists.h"
#include "numbers.h"

// What comes from PyTorch and what goes back.
namespace paramcorrupt {

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

inline int32_t dtype_of(Type type) {
  switch (type) {
    case Type::kFloat:
      return aoti_torch_dtype_float32();
    case Type::kDouble:
      return aoti_torch_dtype_float64();
    case Type::kBFloat16:
      return aoti_torch_dtype_bfloat16();
    default:
      return aoti_torch_dtype_float16();
  }
}

inline Tensor new_vector(int64_t size, int32_t dtype) {
  const int64_t stride = 1;
  AtenTensorHandle x;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(1, &size, &stride, dtype, aoti_torch_device_type_cpu(), 0, &x));
  return Tensor(x);
}

inline Tensor new_matrix(int64_t rows, int64_t columns) {
  const int64_t sizes[] = {rows, columns}, strides[] = {columns, 1};
  AtenTensorHandle x;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(2, sizes, strides, aoti_torch_dtype_float64(), aoti_torch_device_type_cpu(), 0, &x));
  return Tensor(x);
}

}  // namespace paramcorrupt
