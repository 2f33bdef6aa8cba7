#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>

// Tensors as the kernels take them. What users can get wrong has been refused or converted in Python.
namespace vade_robust {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Calls with a value of the type of the tensor.
template <class Call>
void with_type(const Tensor& x, const Call& call) {
  if (x.scalar_type() == ScalarType::Float) return call(float());
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Double, "tensors must be float32 or float64");
  call(double());
}

inline void check(const Tensor& x, ScalarType type, std::initializer_list<int64_t> sizes) {
  STD_TORCH_CHECK(x.scalar_type() == type, "dtypes differ");
  STD_TORCH_CHECK(x.is_contiguous(), "tensors must be contiguous");
  STD_TORCH_CHECK(x.dim() == int64_t(sizes.size()), "a tensor has the wrong number of dimensions");
  int64_t dim = 0;
  for (int64_t size : sizes) STD_TORCH_CHECK(x.size(dim++) == size, "sizes differ");
}

inline Tensor empty(std::initializer_list<int64_t> sizes, ScalarType type) { return torch::stable::empty(sizes, type); }

// While it lives, the thread takes numbers below the normal ones for 0: a product of or with one is a hundred times
// slower on many processors, and posteriors of far components are full of them.
class WithoutSubnormals {
#ifdef __SSE__
 public:
  WithoutSubnormals() { __builtin_ia32_ldmxcsr(kept_ | 0x8040); }
  ~WithoutSubnormals() { __builtin_ia32_ldmxcsr(kept_); }
  WithoutSubnormals(const WithoutSubnormals&) = delete;

 private:
  unsigned kept_ = __builtin_ia32_stmxcsr();
#endif
};

template <class T>
const T* data(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}

template <class T>
T* mutable_data(const Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

}  // namespace vade_robust
