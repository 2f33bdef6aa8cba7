// Sums of squares and of products.
#include <torch/csrc/stable/library.h>

#include <numeric>

#include "arguments.h"
#include "plan.h"
#include "sums.h"
#include "weights.h"

namespace gasam {
namespace {

// Asks for elements that come much later, as the processor's own prefetching of a single stream does not.
template <class S>
void fetch(const S* x) {
  for (int i = 0; i < kTile; i += int(64 / sizeof(S))) __builtin_prefetch(x + 8 * kTile + i, 0, 2);
}

template <class S>
double piece_norm(const S* grad, const S* param, int64_t size, int64_t weighted, double eta) {
  using T = Arithmetic<S>;
  Tile<T> g_tile, w_tile, tile;
  double total = 0;
  tiles(size, [&](int64_t i, int n) {
    fetch(grad + i);
    const T* g = load(grad + i, g_tile, n);
    const T* w = weighted ? load(param + i, w_tile, n) : nullptr;
    total += sum_of_squares(weighed(Form::kOnce, weighted, g, w, T(eta), tile, n), n);
  });
  return total;
}

void boxed_segment_norms(StableIValue* stack, uint64_t, uint64_t) {
  const auto rows = argument<std::vector<int64_t>>(stack[2]), weighted = argument<std::vector<int64_t>>(stack[3]);
  const bool any = std::ranges::any_of(weighted, [](int64_t kind) { return kind != 0; });
  const TensorList grads(stack[0]), params(stack[1], any);
  const auto eta = argument<double>(stack[4]);
  const Plan<2> plan({&grads, &params}, &rows, {.optional = unsigned(any ? 0b00 : 0b10)});
  STD_TORCH_CHECK(weighted.size() == grads.size(), "lists differ in length");

  std::vector<double> sums(plan.pieces());
  plan.run([&](const Job<2>& job, const Piece& piece) {
    with_type(job.type, [&]<class S>(S) {
      sums[piece.number] =
          piece_norm(job.at<S>(0, piece.begin), job.at<S>(1, piece.begin), piece.size, weighted[job.index], eta);
    });
  });
  const Tensor result = new_vector(plan.units());
  double* to = result.mutable_data_ptr<double>();
  for (const Job<2>& job : plan.jobs())
    for (int64_t row = 0; row < job.rows; ++row) {
      const double* first = sums.data() + job.first_piece + row * job.pieces;
      *to++ = std::accumulate(first, first + job.pieces, 0.0);
    }
  stack[0] = torch::stable::detail::from(result);
}

void boxed_inner_products(StableIValue* stack, uint64_t, uint64_t) {
  const TensorList a(stack[0]), b(stack[1]);
  const Plan<2> plan({&a, &b}, nullptr, {});
  std::vector<std::array<double, 3>> sums(plan.pieces());
  plan.run([&](const Job<2>& job, const Piece& piece) {
    with_type(job.type, [&]<class S>(S) {
      Tile<Arithmetic<S>> x_tile, y_tile;
      tiles(piece.size, [&](int64_t i, int n) {
        const auto* x = load(job.at<const S>(0, piece.begin + i), x_tile, n);
        const auto* y = load(job.at<const S>(1, piece.begin + i), y_tile, n);
        add_products(x, y, n, sums[piece.number].data());
      });
    });
  });
  const Tensor result = new_vector(3);
  double* to = result.mutable_data_ptr<double>();
  std::fill_n(to, 3, 0.0);
  for (const auto& sum : sums)
    for (int k = 0; k < 3; ++k) to[k] += sum[k];
  stack[0] = torch::stable::detail::from(result);
}

}  // namespace
}  // namespace gasam

STABLE_TORCH_LIBRARY_IMPL(gasam, CPU, m) {
  m.impl("segment_norms", gasam::boxed_segment_norms);
  m.impl("inner_products", gasam::boxed_inner_products);
}
