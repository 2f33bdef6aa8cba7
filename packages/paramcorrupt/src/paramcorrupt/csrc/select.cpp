// The threshold of the n largest magnitudes.
#include "select.h"

#include <torch/csrc/stable/library.h>

namespace paramcorrupt {
namespace {

void boxed_select(StableIValue* stack, uint64_t, uint64_t) {
  const TensorList list(stack[0]);
  const auto n = argument<int64_t>(stack[1]);
  const Blocks blocks(list);
  STD_TORCH_CHECK(1 <= n && n <= blocks.size(), "n must be from 1 to the number of elements");
  const Tensor result = new_vector(4, aoti_torch_dtype_int64());
  with_type(blocks.type(), [&]<class S>(S) {
    const std::array<int64_t, 4> found = Selection<S>(blocks, n).run(bracket_of<S>(blocks, n));
    std::ranges::copy(found, result.mutable_data_ptr<int64_t>());
  });
  stack[0] = torch::stable::detail::from(result);
}

}  // namespace
}  // namespace paramcorrupt

STABLE_TORCH_LIBRARY_IMPL(paramcorrupt, CPU, m) { m.impl("select", paramcorrupt::boxed_select); }
