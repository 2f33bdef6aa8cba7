// Perturbations: w + e in one ascent, or e in several and then w + e.
#include <torch/csrc/stable/library.h>

#if __has_include(<sys/mman.h>)
#include <sys/mman.h>
#endif

#include "plan.h"
#include "rounding.h"
#include "weights.h"

namespace gasam {
namespace {

Form form_of(int64_t norm) { return norm == 2 ? Form::kTwice : Form::kSign; }

template <class T>
CLONES void add(T* __restrict to, const T* __restrict x, T c, int n) {
  for (int i = 0; i < n; ++i) to[i] += c * x[i];
}

struct Ascent {
  double multiplier, eta;
  int64_t weighted;
  Form form;
  bool past_caches;
};

template <class S>
void perturb(S* param, S* backup, const S* grad, const Piece& piece, const Ascent& a, const Draws& draws) {
  using T = Arithmetic<S>;
  Tile<T> w_tile, g_tile, tile;
  const T c = T(a.multiplier);
  tiles(piece.size, [&](int64_t i, int n) {
    copy(param + i, backup + i, n * sizeof(S), a.past_caches);
    if (c == 0) return;
    T* w = load(param + i, w_tile, n);
    const T* g = load(grad + i, g_tile, n);
    add(w, weighed(a.form, a.weighted, g, w, T(a.eta), tile, n), c, n);
    draws.round(w, param + i, piece.begin + i, n);
  });
  if (a.past_caches) finish_stream();
}

// Asks for large pages under backups, which stay for all of training: small pages cost a twentieth of a step.
void use_large_pages([[maybe_unused]] const std::vector<Job<3>>& jobs) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kPage = 2 << 20;
  uintptr_t begin = 0, end = 0;  // of backups that follow each other
  const auto advise = [&] {
    const uintptr_t first = (begin + kPage - 1) / kPage * kPage, last = end / kPage * kPage;
    if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // no more than advice
  };
  for (const Job<3>& job : jobs) {
    const auto data = uintptr_t(job.data[1]);
    if (data < end || data - end > 64) {
      advise();
      begin = data;
    }
    end = data + job.size * bytes_of(job.type);
  }
  advise();
#endif
}

void boxed_perturb_(StableIValue* stack, uint64_t, uint64_t) {
  const TensorList params(stack[0]), backup(stack[1]), grads(stack[2]);
  const auto multiplier = argument<Tensor>(stack[3]), seed = argument<Tensor>(stack[8]);
  const auto rows = argument<std::vector<int64_t>>(stack[4]), weighted = argument<std::vector<int64_t>>(stack[5]);
  const auto eta = argument<double>(stack[6]);
  const Form form = form_of(argument<int64_t>(stack[7]));
  const Plan<3> plan({&params, &backup, &grads}, &rows, {.written = 0b011});
  STD_TORCH_CHECK(weighted.size() == params.size(), "lists differ in length");
  const double* multipliers = vector_of<double>(multiplier, plan.units());
  const auto key = uint64_t(*vector_of<int64_t>(seed, 1));
  const bool past_caches = plan.bytes() >= kStreamed;
  if (past_caches) use_large_pages(plan.jobs());
  plan.run([&](const Job<3>& job, const Piece& piece) {
    with_type(job.type, [&]<class S>(S) {
      perturb(job.at<S>(0, piece.begin), job.at<S>(1, piece.begin), job.at<const S>(2, piece.begin), piece,
              {multipliers[piece.unit], eta, weighted[job.index], form, past_caches}, {key, uint32_t(job.index)});
    });
  });
}

template <int WEIGHTED, class T>
CLONES void clamp(T* __restrict x, const T* __restrict w, T radius, T eta, int n) {
  for (int i = 0; i < n; ++i) {
    const T limit = radius * weight<WEIGHTED>(WEIGHTED ? w[i] : T(0), eta);
    x[i] = x[i] > limit ? limit : x[i] < -limit ? -limit : x[i];
  }
}

template <class S>
void ascend(Arithmetic<S>* offset, const S* backup, const S* grad, const Piece& piece, const Ascent& a, double radius) {
  using T = Arithmetic<S>;
  Tile<T> w_tile, g_tile, tile;
  const T c = T(a.multiplier);
  if (c == 0) return;
  tiles(piece.size, [&](int64_t i, int n) {
    const T* w = a.weighted ? load(backup + i, w_tile, n) : nullptr;
    const T* g = load(grad + i, g_tile, n);
    add(offset + i, weighed(a.form, a.weighted, g, w, T(a.eta), tile, n), c, n);
    if (a.form == Form::kSign)
      with_weighted(a.weighted, [&]<int WEIGHTED>(std::integral_constant<int, WEIGHTED>) {
        clamp<WEIGHTED>(offset + i, w, T(radius), T(a.eta), n);
      });
  });
}

void boxed_ascend_(StableIValue* stack, uint64_t, uint64_t) {
  const TensorList offset(stack[0]), backup(stack[1]), grads(stack[2]);
  const auto multiplier = argument<Tensor>(stack[3]), radius = argument<Tensor>(stack[4]);
  const auto rows = argument<std::vector<int64_t>>(stack[5]), weighted = argument<std::vector<int64_t>>(stack[6]);
  const auto eta = argument<double>(stack[7]);
  const Form form = form_of(argument<int64_t>(stack[8]));
  const Plan<3> plan({&backup, &grads, &offset}, &rows, {.written = 0b100, .wide = 0b100});
  STD_TORCH_CHECK(weighted.size() == backup.size(), "lists differ in length");
  const double* multipliers = vector_of<double>(multiplier, plan.units());
  const double* radii = vector_of<double>(radius, plan.units());
  plan.run([&](const Job<3>& job, const Piece& piece) {
    with_type(job.type, [&]<class S>(S) {
      ascend(job.at<Arithmetic<S>>(2, piece.begin), job.at<const S>(0, piece.begin), job.at<const S>(1, piece.begin),
             piece, {multipliers[piece.unit], eta, weighted[job.index], form, false}, radii[piece.unit]);
    });
  });
}

// Where the offset is 0, w keeps the bits that it has, which are those of the backup.
template <class T>
CLONES void project(T* __restrict offset, T* __restrict w, T scale, int n) {
  for (int i = 0; i < n; ++i) {
    offset[i] *= scale;
    w[i] = offset[i] == 0 ? w[i] : w[i] + offset[i];
  }
}

template <class S>
CLONES void keep_where_zero(const float* __restrict offset, const S* __restrict backup, S* __restrict to, int n) {
  for (int i = 0; i < n; ++i) to[i].bits = offset[i] == 0 ? backup[i].bits : to[i].bits;
}

void boxed_project_(StableIValue* stack, uint64_t, uint64_t) {
  const TensorList params(stack[0]), backup(stack[1]), offset(stack[2]);
  const auto scale = argument<Tensor>(stack[3]), seed = argument<Tensor>(stack[5]);
  const auto rows = argument<std::vector<int64_t>>(stack[4]);
  const Plan<3> plan({&params, &backup, &offset}, &rows, {.written = 0b101, .wide = 0b100});
  const double* scales = vector_of<double>(scale, plan.units());
  const auto key = uint64_t(*vector_of<int64_t>(seed, 1));
  plan.run([&](const Job<3>& job, const Piece& piece) {
    with_type(job.type, [&]<class S>(S) {
      using T = Arithmetic<S>;
      Tile<T> tile;
      const Draws draws{key, uint32_t(job.index)};
      tiles(piece.size, [&](int64_t i, int n) {
        S* param = job.at<S>(0, piece.begin + i);
        const S* kept = job.at<const S>(1, piece.begin + i);
        T* e = job.at<T>(2, piece.begin + i);
        std::memcpy(param, kept, n * sizeof(S));
        T* w = load(param, tile, n);
        project(e, w, T(scales[piece.unit]), n);
        draws.round(w, param, piece.begin + i, n);
        if constexpr (kSmall<S>) keep_where_zero(e, kept, param, n);
      });
    });
  });
}

}  // namespace
}  // namespace gasam

STABLE_TORCH_LIBRARY_IMPL(gasam, CPU, m) {
  m.impl("perturb_", gasam::boxed_perturb_);
  m.impl("ascend_", gasam::boxed_ascend_);
  m.impl("project_", gasam::boxed_project_);
}
