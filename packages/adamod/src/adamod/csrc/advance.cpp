// Steps a part of a parameter: in place where all its tensors are dense and of suitable dtypes, and tile by tile
// elsewhere.
#include "job.h"
#include "tile.h"

namespace adamod {
namespace {

template <class T>
constexpr Type kTypeOf = std::is_same_v<T, double>  ? Type::kDouble
                         : std::is_same_v<T, float> ? Type::kFloat
                                                    : Type::kBFloat16;

template <class T>
class Part {
 public:
  Part(const Job& job, const Options& options) : job_(job), options_(options), c_(job.coefficients->as<T>()) {
    const bool direct = is<T>(kParam) && is<T>(kGrad) && options.grad_divisor == 1;
    bool rounds = false;
    for (const Stream& x : job.streams) rounds = rounds || x.type == Type::kByte || x.type == Type::kBFloat16;
    random_ = rounds && options.stochastic;
    if (rounds && !random_) std::fill_n(tile_.bits[0], 2 * kRun, kNearest);
    if (direct && is<T>(kExpAvg) && is<T>(kExpAvgSq) && is<T>(kExpAvgLr)) in_place_ = &Part::in_place<Draws::kNone, T>;
    if constexpr (std::is_same_v<T, float>)
      if (direct && is<BFloat16>(kExpAvg) && is<BFloat16>(kExpAvgSq) && is<BFloat16>(kExpAvgLr) && options.stochastic)
        in_place_ = &Part::in_place<Draws::kStates, BFloat16>;
  }

  int64_t advance(int64_t begin, int64_t end) {
    int64_t clipped = 0;
    while (begin < end) {
      // A run that is to be counted is stepped as a tile, which has its v and s at hand.
      const int64_t counted = job_.row.next_counted(begin / kRun) * kRun;
      if (in_place_ && begin < counted) {
        const int64_t stop = std::min(counted, end);
        clipped += (this->*in_place_)(begin, stop);
        begin = stop;
      } else {
        const int n = int(std::min<int64_t>(kRun, end - begin));
        clipped += tile(begin, n, begin == counted);
        begin += n;
      }
    }
    return clipped;
  }

 private:
  template <class S>
  bool is(Role role) const {
    return job_.streams[role].dense && job_.streams[role].type == kTypeOf<S>;
  }
  template <class S>
  S* at(Role role, int64_t i) const {
    return static_cast<S*>(job_.streams[role].data) + i;
  }

  template <Draws DRAWS, class S>
  int64_t update(int64_t begin, int n, T* param, const T* grad, S* exp_avg, S* exp_avg_sq, S* exp_avg_lr) {
    const auto step = options_.variant == Variant::kPlain     ? adamod::update<Variant::kPlain, DRAWS, T, S>
                      : options_.variant == Variant::kDecayed ? adamod::update<Variant::kDecayed, DRAWS, T, S>
                                                              : adamod::update<Variant::kAny, DRAWS, T, S>;
    return step(param, grad, exp_avg, exp_avg_sq, exp_avg_lr, n, c_, options_.bounded_decay, job_.random.counter(begin),
                tile_.bits[0], tile_.bits[1]);
  }

  template <Draws DRAWS, class S>
  int64_t in_place(int64_t begin, int64_t end) {
    int64_t clipped = 0;
    for (int64_t i = begin, next; i < end; i = next) {
      next = std::min(i - i % kGrain + kGrain, end);  // crosses no multiple of 2^32
      clipped += update<DRAWS>(i, int(next - i), at<T>(kParam, i), at<T>(kGrad, i), at<S>(kExpAvg, i),
                               at<S>(kExpAvgSq, i), at<S>(kExpAvgLr, i));
    }
    return clipped;
  }

  int64_t tile(int64_t begin, int n, bool counted) {
    T* x[kStreams];
    for (int k = 0; k < kStreams; ++k) x[k] = load(job_, Role(k), begin, n, tile_);
    if (options_.grad_divisor != 1) {
      divide(x[kGrad], tile_.values[kGrad], n, T(options_.grad_divisor));
      x[kGrad] = tile_.values[kGrad];
    }
    const auto step = random_ ? &Part::update<Draws::kAll, T> : &Part::update<Draws::kNone, T>;
    const int64_t clipped = (this->*step)(begin, n, x[kParam], x[kGrad], x[kExpAvg], x[kExpAvgSq], x[kExpAvgLr]);
    if (counted) count_run(job_.row, x[kExpAvgSq], x[kExpAvgLr], n, c_);
    for (Role role : {kParam, kExpAvg, kExpAvgSq, kExpAvgLr})
      store(job_, role, begin, n, x[role], options_.stochastic, tile_);
    return clipped;
  }

  const Job& job_;
  const Options& options_;
  const Coefficients<T> c_;
  int64_t (Part::*in_place_)(int64_t, int64_t) = nullptr;
  bool random_ = false;
  Tile<T> tile_;
};

}  // namespace

void advance(const Job& job, const Options& options, int64_t begin, int64_t end) {
  const int64_t clipped = job.streams[kParam].type == Type::kDouble ? Part<double>(job, options).advance(begin, end)
                                                                    : Part<float>(job, options).advance(begin, end);
  job.row.add(1, clipped);
}

}  // namespace adamod
