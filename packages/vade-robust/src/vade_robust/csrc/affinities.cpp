// Affinities of t-SNE: for each row the precision at which its neighbours have the wanted entropy.
#include <torch/csrc/stable/library.h>

#include <cmath>

#include "points.h"

namespace vade_robust {
namespace {

constexpr int64_t kChunk = 16;  // rows of a task, each of which starts from the precision of the one before
constexpr int64_t kSide = 64;   // of the squares that are added to their transposes

int64_t squares(int64_t count) { return (count + kSide - 1) / kSide; }

}  // namespace
}  // namespace vade_robust

#define KERNELS "affinities_lanes.h"
#include "widths.h"

namespace vade_robust {
namespace {

Tensor tsne_affinities(const Tensor& x, double perplexity) {
  STD_TORCH_CHECK(x.dim() == 2 && x.size(1) > 0 && x.is_contiguous(), "x must be [B, D], D > 0, and contiguous");
  const int64_t count = x.size(0);
  const Tensor p = torch::stable::new_empty(x, {count, count});
  use_large_pages(p.mutable_data_ptr(), p.numel() * int64_t(p.element_size()));
  with_type(x, [&]<class T>(T) {
    auto* to = static_cast<T*>(p.mutable_data_ptr());
    if (count < 2) return void(std::fill_n(to, count, T(0)));
    const Points<T> points(x);
    const auto rows = WIDEST(fill_conditionals<T>);
    const double target = std::log(perplexity);
    torch::stable::parallel_for(0, (count + kChunk - 1) / kChunk, 1,
                                [&](int64_t begin, int64_t end) { rows(points, target, to, begin, end); });
    const auto squares_of = WIDEST(add_transposed<T>);
    torch::stable::parallel_for(0, (squares(count) + 1) / 2, 1,
                                [&](int64_t begin, int64_t end) { squares_of(count, to, begin, end); });
  });
  return p;
}

}  // namespace
}  // namespace vade_robust

STABLE_TORCH_LIBRARY_IMPL(vade_robust, CPU, m) { m.impl("tsne_affinities", TORCH_BOX(&vade_robust::tsne_affinities)); }
