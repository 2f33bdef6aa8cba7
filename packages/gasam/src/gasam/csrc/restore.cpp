// The clean weights, back where they were.
#include <torch/csrc/stable/library.h>

#include <cstring>

#include "lists.h"

namespace gasam {
namespace {

void boxed_restore_(StableIValue* stack, uint64_t, uint64_t) {
  const TensorList params(stack[0]), backup(stack[1]);
  STD_TORCH_CHECK(params.size() == backup.size(), "lists differ in length");
  for (size_t i = 0; i < params.size(); ++i) {
    const int32_t dtype = get(aoti_torch_get_dtype, params[i]);
    const size_t size = dtype == aoti_torch_dtype_float64() ? 8 : dtype == aoti_torch_dtype_float32() ? 4 : 2;
    const size_t bytes = get(aoti_torch_get_numel, params[i]) * size;
    std::memcpy(get(torch_get_mutable_data_ptr, params[i]), get(torch_get_const_data_ptr, backup[i]), bytes);
  }
}

}  // namespace
}  // namespace gasam

STABLE_TORCH_LIBRARY_IMPL(gasam, CPU, m) { m.impl("restore_", gasam::boxed_restore_); }
