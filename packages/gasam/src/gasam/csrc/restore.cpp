// The clean weights, back where they were, and the base step from there: nothing is read or written twice.
#include <torch/csrc/stable/library.h>

#include <cmath>

#include "plan.h"
#include "tiles.h"

namespace gasam {
namespace {

// What the base steps share: how a gradient is read, and whether there is a step at all.
struct Common {
  double lr, decay, factor;  // of the gradient: its sign, and the reciprocal of the scale of the loss
  bool skipped, past_caches;

  Common(double lr, double decay, bool maximize, StableIValue scale, StableIValue found_inf, int64_t bytes)
      : lr(lr), decay(decay) {
    const auto divisor = argument<std::optional<Tensor>>(scale), found = argument<std::optional<Tensor>>(found_inf);
    factor = (maximize ? -1 : 1) / (divisor ? number(divisor->get()) : 1);
    skipped = found && number(found->get()) != 0;
    past_caches = bytes >= kStreamed;
  }
};

// Calls update(kept weights, new weights, begin, how many) on the tiles of a piece.
template <class S, class Update>
void restored(S* param, const S* kept, int64_t size, bool past_caches, const Update& update) {
  Tile<Arithmetic<S>> from, to;
  tiles(size, [&](int64_t i, int n) {
    update(load(kept + i, from, n), to.values, i, n);
    if constexpr (kSmall<S>)
      round_to_nearest(to.values, param + i, n);
    else
      copy(to.values, param + i, n * sizeof(S), past_caches);
  });
  if (past_caches) finish_stream();
}

void restore(const TensorList& params, const TensorList& backup) {
  const Plan<2> plan({&params, &backup}, nullptr, {.written = 0b01});
  const bool past_caches = plan.bytes() >= kStreamed;
  plan.run([&](const Job<2>& job, const Piece& piece) {
    with_type(job.type, [&]<class S>(S) {
      S* param = job.at<S>(0, piece.begin);
      const S* kept = job.at<const S>(1, piece.begin);
      if (param != kept) copy(kept, param, piece.size * sizeof(S), past_caches);
      if (past_caches) finish_stream();
    });
  });
}

void boxed_restore_(StableIValue* stack, uint64_t, uint64_t) { restore(TensorList(stack[0]), TensorList(stack[1])); }

// --- SGD -------------------------------------------------------------------------------------------------------------

enum class Momentum { kNone, kFirst, kLater };

template <class T>
struct Sgd {
  T factor, decay, lr, mu, take;
  bool nesterov;
};

template <Momentum MOMENTUM, class T>
CLONES void sgd(const T* __restrict w, T* __restrict to, const T* __restrict g, T* __restrict momentum, int n,
                const Sgd<T> c) {
  for (int i = 0; i < n; ++i) {
    T x = g[i] * c.factor;
    if (c.decay != 0) x += c.decay * w[i];
    if constexpr (MOMENTUM != Momentum::kNone) {
      const T m = MOMENTUM == Momentum::kFirst ? x : c.mu * momentum[i] + c.take * x;
      momentum[i] = m;
      x = c.nesterov ? x + c.mu * m : m;
    }
    to[i] = w[i] - c.lr * x;
  }
}

// `momentum` is null where there is none.
template <class T>
void sgd(const T* w, T* to, const T* g, T* momentum, int n, bool first, const Sgd<T>& c) {
  if (!momentum)
    sgd<Momentum::kNone>(w, to, g, momentum, n, c);
  else if (first)
    sgd<Momentum::kFirst>(w, to, g, momentum, n, c);
  else
    sgd<Momentum::kLater>(w, to, g, momentum, n, c);
}

double rate(StableIValue lr, bool tensor) { return tensor ? number(argument<Tensor>(lr).get()) : argument<double>(lr); }

template <bool TENSOR_LR>
void boxed_restore_sgd_(StableIValue* stack, uint64_t, uint64_t) {
  const TensorList params(stack[0]), backup(stack[1]), grads(stack[2]), momentum(stack[3]);
  const auto real = [&](int i) { return argument<double>(stack[i]); };
  const auto flag = [&](int i) { return argument<bool>(stack[i]); };
  const Plan<4> plan({&params, &backup, &grads, &momentum}, nullptr, {.written = 0b1001, .optional = 0b1000});
  const Common common(rate(stack[4], TENSOR_LR), real(7), flag(9), stack[11], stack[12], plan.bytes());
  if (common.skipped) return restore(params, backup);
  const double mu = real(5), dampening = real(6);
  const bool nesterov = flag(8), first = flag(10);
  plan.run([&](const Job<4>& job, const Piece& piece) {
    with_type(job.type, [&]<class S>(S) {
      using T = Arithmetic<S>;
      const Sgd<T> c{T(common.factor), T(common.decay), T(common.lr), T(mu), T(1 - dampening), nesterov};
      const S* grad = job.at<const S>(2, piece.begin);
      S* kept_momentum = job.data[3] ? job.at<S>(3, piece.begin) : nullptr;
      Tile<T> g_tile, m_tile;
      restored(job.at<S>(0, piece.begin), job.at<const S>(1, piece.begin), piece.size, common.past_caches,
               [&](const T* w, T* to, int64_t i, int n) {
        T* m = kept_momentum ? load(kept_momentum + i, m_tile, n) : nullptr;
        sgd(w, to, load(grad + i, g_tile, n), m, n, first, c);
        if (m) store(m, kept_momentum + i, n);
      });
    });
  });
}

// --- Adam ------------------------------------------------------------------------------------------------------------

template <class T>
struct Adam {
  T factor, decay, keep;  // decay: of the gradient; keep: what decoupled decay leaves of the weights
  T take1, beta2, take2, eps;
  T rate, root;  // of the bias corrections: lr / (1 - beta1^t), 1 / sqrt(1 - beta2^t)

  template <class U>
  Adam<U> as() const {
    return {U(factor), U(decay), U(keep), U(take1), U(beta2), U(take2), U(eps), U(rate), U(root)};
  }
};

template <bool AMSGRAD, class T>
CLONES void adam(const T* __restrict w, T* __restrict to, const T* __restrict g, T* __restrict exp_avg,
                 T* __restrict exp_avg_sq, T* __restrict largest, int n, const Adam<T> c) {
  for (int i = 0; i < n; ++i) {
    T x = g[i] * c.factor;
    if (c.decay != 0) x += c.decay * w[i];
    const T m = exp_avg[i] + c.take1 * (x - exp_avg[i]);
    T v = c.beta2 * exp_avg_sq[i] + c.take2 * x * x;
    exp_avg[i] = m;
    exp_avg_sq[i] = v;
    if constexpr (AMSGRAD) {
      const T old = largest[i];
      v = old > v || old != old ? old : v;  // NaN wherever either is
      largest[i] = v;
    }
    to[i] = w[i] * c.keep - c.rate * (m / (std::sqrt(v) * c.root + c.eps));
  }
}

// Counts a step of each parameter, and tells what the step is made of.
class Steps {
 public:
  Steps(const TensorList& steps, const Adam<double>& c, double lr, double beta1) : c_(c), lr_(lr), beta1_(beta1) {
    for (size_t k = 0; k < steps.size(); ++k)
      with_type(type_of(steps[k]), [&]<class S>(S) {
        S* step = static_cast<S*>(get(torch_get_mutable_data_ptr, steps[k]));
        const double t = number(steps[k]) + 1;
        *step = narrow<S>(Arithmetic<S>(t));
        all_.push_back(all_.empty() || t != last_ ? at(t) : all_.back());
        last_ = t;
      });
  }
  const Adam<double>& operator[](int64_t k) const { return all_[k]; }

 private:
  Adam<double> at(double t) const {
    Adam<double> c = c_;
    c.rate = lr_ / (1 - std::pow(beta1_, t));
    c.root = 1 / std::sqrt(1 - std::pow(c.beta2, t));
    return c;
  }

  Adam<double> c_;
  double lr_, beta1_, last_ = 0;
  std::vector<Adam<double>> all_;
};

template <bool TENSOR_LR>
void boxed_restore_adam_(StableIValue* stack, uint64_t, uint64_t) {
  const TensorList params(stack[0]), backup(stack[1]), grads(stack[2]), exp_avg(stack[3]), exp_avg_sq(stack[4]);
  const TensorList max_exp_avg_sq(stack[5]), step_counts(stack[6]);
  const auto real = [&](int i) { return argument<double>(stack[i]); };
  const auto flag = [&](int i) { return argument<bool>(stack[i]); };
  const bool decoupled = flag(12), amsgrad = flag(13);
  const Plan<6> plan({&params, &backup, &grads, &exp_avg, &exp_avg_sq, &max_exp_avg_sq}, nullptr,
                     {.written = 0b111001, .optional = unsigned(amsgrad ? 0 : 0b100000)});
  STD_TORCH_CHECK(step_counts.size() == params.size(), "lists differ in length");
  const Common common(rate(stack[7], TENSOR_LR), real(11), flag(14), stack[15], stack[16], plan.bytes());
  if (common.skipped) return restore(params, backup);
  const double beta1 = real(8), beta2 = real(9);
  const Adam<double> shared{.factor = common.factor,
                            .decay = decoupled ? 0 : common.decay,
                            .keep = decoupled ? 1 - common.lr * common.decay : 1,
                            .take1 = 1 - beta1,
                            .beta2 = beta2,
                            .take2 = 1 - beta2,
                            .eps = real(10),
                            .rate = 0,
                            .root = 0};
  const Steps steps(step_counts, shared, common.lr, beta1);
  plan.run([&](const Job<6>& job, const Piece& piece) {
    with_type(job.type, [&]<class S>(S) {
      using T = Arithmetic<S>;
      const Adam<T> c = steps[job.index].template as<T>();
      const auto at = [&](int list, int64_t i) { return job.at<S>(list, piece.begin + i); };
      Tile<T> g_tile, m_tile, v_tile, max_tile;
      restored(at(0, 0), at(1, 0), piece.size, common.past_caches, [&](const T* w, T* to, int64_t i, int n) {
        const T* g = load(at(2, i), g_tile, n);
        T *m = load(at(3, i), m_tile, n), *v = load(at(4, i), v_tile, n);
        if (amsgrad) {
          T* largest = load(at(5, i), max_tile, n);
          adam<true>(w, to, g, m, v, largest, n, c);
          store(largest, at(5, i), n);
        } else {
          adam<false>(w, to, g, m, v, static_cast<T*>(nullptr), n, c);
        }
        store(m, at(3, i), n);
        store(v, at(4, i), n);
      });
    });
  });
}

}  // namespace
}  // namespace gasam

STABLE_TORCH_LIBRARY_IMPL(gasam, CPU, m) {
  m.impl("restore_", gasam::boxed_restore_);
  m.impl("restore_sgd_", gasam::boxed_restore_sgd_<false>);
  m.impl("restore_sgd_.tensor_lr", gasam::boxed_restore_sgd_<true>);
  m.impl("restore_adam_", gasam::boxed_restore_adam_<false>);
  m.impl("restore_adam_.tensor_lr", gasam::boxed_restore_adam_<true>);
}
