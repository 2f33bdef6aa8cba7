// Mixtures of clean and perturbed gradients.
#include <torch/csrc/stable/library.h>

#include "plan.h"
#include "tiles.h"

namespace gasam {
namespace {

template <class T>
CLONES void mix(T* __restrict g, const T* __restrict kept, T c0, T c1, int n) {
  for (int i = 0; i < n; ++i) g[i] = c0 * kept[i] + c1 * g[i];
}

void boxed_mix_(StableIValue* stack, uint64_t, uint64_t) {
  const TensorList grads(stack[0]), kept(stack[1]);
  const auto c = argument<Tensor>(stack[2]), found_inf = argument<Tensor>(stack[3]);
  const Plan<2> plan({&grads, &kept}, nullptr, {.written = 0b01});
  const double* factors = vector_of<double>(c, 2);
  if (number(found_inf.get()) != 0) return;
  plan.run([&](const Job<2>& job, const Piece& piece) {
    with_type(job.type, [&]<class S>(S) {
      using T = Arithmetic<S>;
      Tile<T> g_tile, kept_tile;
      tiles(piece.size, [&](int64_t i, int n) {
        S* grad = job.at<S>(0, piece.begin + i);
        T* g = load(grad, g_tile, n);
        mix(g, load(job.at<const S>(1, piece.begin + i), kept_tile, n), T(factors[0]), T(factors[1]), n);
        store(g, grad, n);
      });
    });
  });
}

}  // namespace
}  // namespace gasam

STABLE_TORCH_LIBRARY_IMPL(gasam, CPU, m) { m.impl("mix_", gasam::boxed_mix_); }
