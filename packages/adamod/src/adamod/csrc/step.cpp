// The operator.
#include <torch/csrc/stable/library.h>

#include "plan.h"

namespace adamod {
namespace {

void step_(const Arguments& arguments) {
  if (arguments.found_inf && number(*arguments.found_inf) != 0) return;
  Plan(arguments).run();
}

void boxed_step_(StableIValue* stack, uint64_t, uint64_t) {
  const auto list = [&](int i) { return TensorList(stack[i]); };
  const auto flag = [&](int i) { return torch::stable::detail::to<bool>(stack[i]); };
  const auto tensor = [&](int i) { return torch::stable::detail::to<Tensor>(stack[i]); };
  const auto maybe = [&](int i) { return torch::stable::detail::to<std::optional<Tensor>>(stack[i]); };
  step_({.lists = {list(0), list(1), list(2), list(3), list(4)},
         .scales = list(5),
         .steps = tensor(6),
         .index = torch::stable::detail::to<std::vector<int64_t>>(stack[7]),
         .hyper = tensor(8),
         .paper = flag(9),
         .bounded_decay = flag(10),
         .skip_unseen = flag(11),
         .maximize = flag(12),
         .seed = torch::stable::detail::to<std::optional<int64_t>>(stack[13]),
         .grad_scale = maybe(14),
         .found_inf = maybe(15),
         .stats = maybe(16)});
}

}  // namespace
}  // namespace adamod

STABLE_TORCH_LIBRARY_IMPL(adamod, CPU, m) { m.impl("step_", adamod::boxed_step_); }
