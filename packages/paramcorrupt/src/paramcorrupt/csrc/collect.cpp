// What a threshold selects, in order: places and values.
#include "collect.h"

#include <torch/csrc/stable/library.h>

namespace paramcorrupt {
namespace {

void boxed_collect(StableIValue* stack, uint64_t, uint64_t) {
  const TensorList list(stack[0]);
  const auto threshold = argument<Tensor>(stack[1]);
  STD_TORCH_CHECK(threshold.numel() == 4 && threshold.is_contiguous(), "a threshold has four numbers");
  const auto* const t = threshold.const_data_ptr<int64_t>();
  const Blocks blocks(list);
  with_type(blocks.type(),
            [&]<class S>(S) { Collection<S>(blocks, Bits<S>(t[0]), t[2]).run(t[1] + t[2]).give(stack); });
}

}  // namespace
}  // namespace paramcorrupt

STABLE_TORCH_LIBRARY_IMPL(paramcorrupt, CPU, m) { m.impl("collect", paramcorrupt::boxed_collect); }
