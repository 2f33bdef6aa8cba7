// The tile for one instruction set. Included inside its namespace, which says kBytes and multiply_add.

#define INLINE inline __attribute__((always_inline))

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kBytes), may_alias));
};
template <class T>
using Vector = typename VectorOf<T>::type;

template <class T>
inline constexpr int kWidth = kBytes / int(sizeof(T));

template <class T>
INLINE Vector<T> load(const T* p) {
  return *reinterpret_cast<const Vector<T>*>(p);
}
template <class T>
INLINE void store(T* p, Vector<T> a) {
  *reinterpret_cast<Vector<T>*>(p) = a;
}

// Sums of neighbours: of elements, within 16 bytes (Pair = 1), or of blocks of 16 bytes.
template <int Pair, class V, int... I>
INLINE V fold(V a, V b, std::integer_sequence<int, I...>) {
  constexpr int n = sizeof...(I);
  // Within 16 bytes a and b alternate; blocks come from a, then from b.
  if constexpr (Pair == 1) {
    constexpr int lane = 16 * n / kBytes;
    return __builtin_shufflevector(a, b,
                                   (I / lane * lane + 2 * (I % lane) % lane + (I % lane * 2 >= lane ? n : 0))...) +
           __builtin_shufflevector(a, b,
                                   (I / lane * lane + 2 * (I % lane) % lane + (I % lane * 2 >= lane ? n : 0) + 1)...);
  } else {
    return __builtin_shufflevector(a, b, (2 * (I / Pair) * Pair + I % Pair)...) +
           __builtin_shufflevector(a, b, (2 * (I / Pair) * Pair + Pair + I % Pair)...);
  }
}

// The sums of `Count` vectors, each in the place of its vector, and again up to the width.
template <class T, int Count>
INLINE Vector<T> sums(Vector<T>* s) {
  constexpr int width = kWidth<T>, lane = 16 / int(sizeof(T));
  constexpr std::make_integer_sequence<int, width> all{};
  int left = Count;
  for (int n = width; n > 1; n /= 2) {
    const int step = left > 1;
    left -= left / 2;
    for (int i = 0; i < left; ++i) {
      s[i] = n > width / lane ? fold<1>(s[i << step], s[(i << step) + step], all)
                              : fold<lane>(s[i << step], s[(i << step) + step], all);
    }
  }
  return s[0];
}

// exp(x) for x <= 0: 2^n times the Taylor series of what is left, |r| <= log(2) / 2.
INLINE Vector<float> exponential(Vector<float> x) {
  typedef uint32_t Bits __attribute__((vector_size(kBytes)));
  x = x < -87.f ? Vector<float>{} - 87.f : x;
  const Vector<float> shifted = x * 1.44269504f + 0x1.8p23f, n = shifted - 0x1.8p23f;
  const Vector<float> one = Vector<float>{} + 1.f;
  const Vector<float> r = multiply_add(n, one * 2.12194440e-4f, multiply_add(n, one * -0.693359375f, x));
  Vector<float> p = one * (1 / 5040.f);
  for (const float c : {1 / 720.f, 1 / 120.f, 1 / 24.f, 1 / 6.f, .5f, 1.f, 1.f}) p = multiply_add(p, r, one * c);
  return p * Vector<float>((Bits(shifted) + 127) << 23);
}

INLINE Vector<double> exponential(Vector<double> x) {
  typedef uint64_t Bits __attribute__((vector_size(kBytes)));
  x = x < -708. ? Vector<double>{} - 708. : x;
  const Vector<double> shifted = x * 1.4426950408889634 + 0x1.8p52, n = shifted - 0x1.8p52;
  const Vector<double> one = Vector<double>{} + 1.;
  const Vector<double> r =
      multiply_add(n, one * -1.9082149292705877e-10, multiply_add(n, one * -6.93147180369123816490e-01, x));
  Vector<double> p = one / 6227020800.;
  for (const double c : {1 / 479001600., 1 / 39916800., 1 / 3628800., 1 / 362880., 1 / 40320., 1 / 5040., 1 / 720.,
                         1 / 120., 1 / 24., 1 / 6., .5, 1., 1.}) {
    p = multiply_add(p, r, one * c);
  }
  return p * Vector<double>((Bits(shifted) + 1023) << 52);
}

// One input against R outputs of a tile.
template <class T, int R, bool Whole, bool Gradient, bool WithLoss>
INLINE void outputs(const Tile<T>& t, int i, const Outputs<T>& o, Vector<T>* linear, Vector<T>* product) {
  using V = Vector<T>;
  constexpr int width = kWidth<T>, count = width < kSums ? width : kSums;
  // Copies: the compiler must think that a stored row may change what memory holds.
  const int columns = t.columns;
  T *x = t.x[i], *dx_to = Gradient ? t.dx[i] : x, *scratch = t.scratch, *y[R], *dy[R];
  for (int j = 0; j < R; ++j) y[j] = o.y[j], dy[j] = o.dy[j];
  V sum[kSums] = {};
  for (int c = 0; c < columns; c += width) {
    const V a = load(x + c);
    for (int j = 0; j < R; ++j) sum[j] = multiply_add(a, load(y[j] + c), sum[j]);
  }
  alignas(64) T g[kBlock];
  for (int q = 0; q < kSums / count; ++q) {
    const V f = sums<T, count>(sum + q * count);
    const V label = load(o.label + q * count), weight = load(o.weight + q * count);
    const V e = exponential(f < 0 ? f : -f), p = 1 + e;
    const V s = (f < 0 ? e : V{} + T(1)) / p;
    store(g + q * count, t.alpha * weight * (label - s));
    if constexpr (WithLoss) {
      const V h = f - 2 * label * f;
      linear[q] += weight * (h > 0 ? h : V{});
      if (o.most <= kMost) {
        for (int k = 0; k < o.most; ++k) product[q] *= weight > T(k) ? p : V{} + T(1);
      } else {
        for (int j = 0; j < count; ++j) linear[q][j] += weight[j] * std::log(p[j]);
      }
    }
  }
  V gs[R];
  for (int j = 0; j < R; ++j) gs[j] = V{} + g[j];
  const V lock = V{} + t.lock[i];
  for (int c = 0; c < columns; c += width) {
    const V a = load(x + c);
    V dx = {};
    for (int j = 0; j < R; ++j) {
      const V b = load(y[j] + c);
      dx = multiply_add(gs[j], b, dx);
      if constexpr (Gradient) {
        store(dy[j] + c, multiply_add(gs[j], a, load(dy[j] + c)));
      } else {
        store(y[j] + c, multiply_add(gs[j], a, b));
      }
    }
    if constexpr (!Whole) {
      store(scratch + c, load(scratch + c) + dx);
    } else if constexpr (Gradient) {
      store(dx_to + c, multiply_add(lock, dx, load(dx_to + c)));
    } else {
      store(dx_to + c, multiply_add(lock, dx, a));
    }
  }
}

template <class T, bool Whole, bool Gradient, bool WithLoss>
INLINE void any_outputs(const Tile<T>& t, int i, const Outputs<T>& o, Vector<T>* linear, Vector<T>* product) {
  if (o.rows == 6) {
    outputs<T, 6, Whole, Gradient, WithLoss>(t, i, o, linear, product);
  } else if (o.rows == 4) {
    outputs<T, 4, Whole, Gradient, WithLoss>(t, i, o, linear, product);
  } else {
    outputs<T, 2, Whole, Gradient, WithLoss>(t, i, o, linear, product);
  }
}

template <class T, bool Gradient, bool WithLoss>
void step(const Tile<T>& t, Loss* loss) {
  using V = Vector<T>;
  constexpr int width = kWidth<T>, parts = width < kSums ? kSums / width : 1, count = kSums / parts;
  V linear[parts] = {}, product[parts] = {};
  for (int i = 0; i < t.m; ++i) {
    if (WithLoss && i % kFlush == 0) {
      for (int q = 0; q < parts; ++q) linear[q] = V{}, product[q] = V{} + T(1);
    }
    if (t.chunks == 1) {
      any_outputs<T, true, Gradient, WithLoss>(t, i, t.outputs[0], linear, product);
    } else {
      for (int k = 0; k < t.chunks; ++k) {
        any_outputs<T, false, Gradient, WithLoss>(t, i, t.outputs[k], linear, product);
      }
      T* to = Gradient ? t.dx[i] : t.x[i];
      for (int c = 0; c < t.columns; c += width) {
        store(to + c, multiply_add(V{} + t.lock[i], load(t.scratch + c), load(to + c)));
        store(t.scratch + c, V{});
      }
    }
    if (WithLoss && (i % kFlush == kFlush - 1 || i == t.m - 1)) {
      for (int q = 0; q < parts; ++q) {
        for (int j = 0; j < count; ++j) loss->linear += linear[q][j], loss->multiply(product[q][j]);
      }
    }
  }
}

template <class T, bool Gradient>
void step(const Tile<T>& t, Loss* loss) {
  if (loss) {
    step<T, Gradient, true>(t, loss);
  } else {
    step<T, Gradient, false>(t, loss);
  }
}

#undef INLINE
