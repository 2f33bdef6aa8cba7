// An ascent of a change, and its projection: exactly the largest elements, less a constant, clipped and scaled.
#include <torch/csrc/stable/library.h>

#include "change.h"

namespace paramcorrupt {
namespace {

// The bits of |x| in the type K in which all tensors are compared.
template <class K, class S>
inline Signed<K> key_of(S x) {
  if constexpr (sizeof(K) == sizeof(S))
    return Signed<K>(std::bit_cast<Signed<S>>(x) & std::numeric_limits<Signed<S>>::max());
  else
    return std::bit_cast<Signed<K>>(std::abs(Arithmetic<K>(widen(x))));
}

template <class K, class S>
CLONES int count_equal(const S* x, int64_t limit, int n) {
  const auto key = Signed<K>(limit);
  int equal = 0;
  for (int i = 0; i < n; ++i) equal += key_of<K>(x[i]) == key;
  return equal;
}

struct Projection {
  int64_t limit;
  double shrink, clip, scale;
};

// Of the elements at the limit all are kept or, without `ties`, none.
template <class K, class S>
CLONES void project_tile(const S* __restrict x, Signed<S>* __restrict to, const Projection& projection, bool ties,
                         int n) {
  const Projection c = projection;
  const auto key = Signed<K>(c.limit);
  for (int i = 0; i < n; ++i) {
    const double value = widen(x[i]), less = std::abs(value) - c.shrink;
    const double size = (less > c.clip ? c.clip : less < 0 ? 0 : less) * c.scale;
    const Signed<K> own = key_of<K>(x[i]);
    const double kept = (own > key) | (ties & (own == key)) ? value > 0 ? size : value < 0 ? -size : 0 * size : 0;
    to[i] = std::bit_cast<Signed<S>>(narrow<S>(Arithmetic<S>(kept)));
  }
}

template <class S>
CLONES void ascend_tile(const S* __restrict x, const double* __restrict a, Signed<S>* __restrict to, int n) {
  for (int i = 0; i < n; ++i) to[i] = std::bit_cast<Signed<S>>(narrow<S>(Arithmetic<S>(double(widen(x[i])) + a[i])));
}

// Calls call(K) with the type in which tensors of these types are compared.
template <class Call>
void with_key(const Plan<2>& plan, const Call& call) {
  if (plan.jobs().empty()) return;
  Type type = plan.jobs()[0].types[0];
  for (const auto& job : plan.jobs())
    if (job.types[0] != type)
      type = type == Type::kDouble || job.types[0] == Type::kDouble ? Type::kDouble : Type::kFloat;
  with_type(type, call);
}

// Whether a tensor of type S can be in a list that is compared in type K.
template <class K, class S>
inline constexpr bool kHolds = std::is_same_v<K, S> || sizeof(K) > sizeof(S);

void boxed_ascend_project_(StableIValue* stack, uint64_t, uint64_t) {
  const TensorList a(stack[0]), g(stack[1]);
  const Change change(argument<double>(stack[2]), argument<double>(stack[3]));
  const auto threshold = argument<Tensor>(stack[4]);
  const Projection projection{threshold.const_data_ptr<int64_t>()[0], argument<double>(stack[5]),
                              argument<double>(stack[6]), argument<double>(stack[7])};
  int64_t ties = threshold.const_data_ptr<int64_t>()[2];
  const Plan<2> plan({&a, &g});
  with_key(plan, [&]<class K>(K) {
    const auto each = [&](const auto& visit) {
      plan.run([&](const Job<2>& job, const Piece& piece) {
        with_type(job.types[0], [&]<class S>(S) {
          if constexpr (kHolds<K, S>) visit(job, piece, job.at<S>(0, piece.begin));
        });
      });
    };
    std::vector<int64_t> equal(plan.pieces());
    each([&]<class S>(const Job<2>& job, const Piece& piece, S* x) {
      Tile<double> step;
      Tile<Signed<S>> moved;
      tiles(piece.size, [&](int64_t i, int n) {
        if (change.scale != 0) {
          change(job.types[0], job.types[1], job.data[1], piece.begin + i, step, n);
          ascend_tile(x + i, step.values, moved.values, n);
          std::memcpy(x + i, moved.values, n * sizeof(S));
        }
        equal[piece.number] += count_equal<K>(x + i, projection.limit, n);
      });
    });
    std::vector<int64_t> left(plan.pieces());  // of the ties, when a piece begins
    for (size_t k = 0; k < equal.size(); ++k) {
      left[k] = ties;
      ties -= std::min(ties, equal[k]);
    }
    each([&]<class S>(const Job<2>&, const Piece& piece, S* x) {
      Tile<Signed<S>> projected;
      int64_t rest = left[piece.number];
      tiles(piece.size, [&](int64_t i, int n) {
        const int here = rest > 0 ? count_equal<K>(x + i, projection.limit, n) : 0;
        project_tile<K>(x + i, projected.values, projection, here > 0 && here <= rest, n);
        if (here > rest)  // the last of the ties are in this tile: element by element
          for (int k = 0, taken = 0; taken < rest; ++k)
            if (key_of<K>(x[i + k]) == Signed<K>(projection.limit)) {
              project_tile<K>(x + i + k, projected.values + k, projection, true, 1);
              ++taken;
            }
        rest -= std::min<int64_t>(rest, here);
        std::memcpy(x + i, projected.values, n * sizeof(S));
      });
    });
  });
}

}  // namespace
}  // namespace paramcorrupt

STABLE_TORCH_LIBRARY_IMPL(paramcorrupt, CPU, m) { m.impl("ascend_project_", paramcorrupt::boxed_ascend_project_); }
