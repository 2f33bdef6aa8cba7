// The tile for one instruction set. Included inside its namespace, which says kBytes and multiply_add.

#define INLINE inline __attribute__((always_inline))

template <class T, int Lanes>
struct VectorOf {
  typedef T type __attribute__((vector_size(Lanes * sizeof(T)), may_alias));
};
template <class T>
inline constexpr int kWidth = kBytes / int(sizeof(T));
template <class T>
using Vector = typename VectorOf<T, kWidth<T>>::type;

// The products of one input with all outputs: kSums of them, in kParts vectors.
template <class T>
inline constexpr int kFew = kWidth<T> < kSums ? kWidth<T> : kSums;
template <class T>
inline constexpr int kParts = kSums / kFew<T>;
template <class T>
using Few = typename VectorOf<T, kFew<T>>::type;

template <class V, class T>
INLINE V load(const T* p) {
  return *reinterpret_cast<const V*>(p);
}
template <class V, class T>
INLINE void store(T* p, V a) {
  *reinterpret_cast<V*>(p) = a;
}
template <class V, class T>
INLINE V splat(T a) {
  return a - V{};  // not a sum, which would make 0 of -0
}

// Lanes with this bit take sums of neighbours at that distance from b, those without it from a.
template <int Bit, class V, int... I>
INLINE V fold(V a, V b, std::integer_sequence<int, I...>) {
  constexpr int n = sizeof...(I);
  return __builtin_shufflevector(a, b, (I & Bit ? n + I : I)...) +
         __builtin_shufflevector(a, b, (I & Bit ? n + (I ^ Bit) : I ^ Bit)...);
}

template <class V, int... I>
INLINE auto halves(V a, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, a, I...) + __builtin_shufflevector(a, a, (int(sizeof...(I)) + I)...);
}

// The sums of kFew vectors, each in the lane of its number.
template <class T, int Bit = 1>
INLINE Few<T> sums(Vector<T>* s) {
  if constexpr (Bit < kFew<T>) {
    for (int i = 0; i < kFew<T> / Bit / 2; ++i) {
      s[i] = fold<Bit>(s[2 * i], s[2 * i + 1], std::make_integer_sequence<int, kWidth<T>>{});
    }
    return sums<T, 2 * Bit>(s);
  } else if constexpr (kFew<T> < kWidth<T>) {
    return halves(s[0], std::make_integer_sequence<int, kFew<T>>{});
  } else {
    return s[0];
  }
}

// exp(x) for x <= 0: 2^n times the Taylor series of what is left, |r| <= log(2) / 2.
INLINE Few<float> exponential(Few<float> x) {
  using V = Few<float>;
  typedef uint32_t Bits __attribute__((vector_size(sizeof(V))));
  x = x < -87.f ? splat<V>(-87.f) : x;
  const V shifted = multiply_add(x, splat<V>(1.44269504f), splat<V>(0x1.8p23f)), n = shifted - 0x1.8p23f;
  const V r = multiply_add(n, splat<V>(2.12194440e-4f), multiply_add(n, splat<V>(-0.693359375f), x));
  const V r2 = r * r, one = splat<V>(1.f);
  const V low = multiply_add(multiply_add(r, splat<V>(1 / 6.f), one * .5f), r2, r + 1.f);
  const V middle = multiply_add(r, splat<V>(1 / 120.f), splat<V>(1 / 24.f));
  const V high = multiply_add(r, splat<V>(1 / 5040.f), splat<V>(1 / 720.f));
  const V p = multiply_add(multiply_add(high, r2, middle), r2 * r2, low);
  return p * V((Bits(shifted) + 127) << 23);
}

INLINE Few<double> exponential(Few<double> x) {
  using V = Few<double>;
  typedef uint64_t Bits __attribute__((vector_size(sizeof(V))));
  x = x < -708. ? splat<V>(-708.) : x;
  const V shifted = multiply_add(x, splat<V>(1.4426950408889634), splat<V>(0x1.8p52)), n = shifted - 0x1.8p52;
  const V r =
      multiply_add(n, splat<V>(-1.9082149292705877e-10), multiply_add(n, splat<V>(-6.93147180369123816490e-01), x));
  V p = splat<V>(1 / 6227020800.);
  for (const double c : {1 / 479001600., 1 / 39916800., 1 / 3628800., 1 / 362880., 1 / 40320., 1 / 5040., 1 / 720.,
                         1 / 120., 1 / 24., 1 / 6., .5, 1., 1.}) {
    p = multiply_add(p, r, splat<V>(c));
  }
  return p * V((Bits(shifted) + 1023) << 52);
}

// Results of a few inputs in registers, until they go to the Loss.
template <class T>
struct Partial {
  Few<T> linear[kParts<T>], product[kParts<T>];

  INLINE Partial() { clear(); }
  INLINE void clear() {
    for (int q = 0; q < kParts<T>; ++q) linear[q] = Few<T>{}, product[q] = splat<Few<T>>(T(1));
  }
  INLINE void flush(Loss& loss) {
    for (int q = 0; q < kParts<T>; ++q) {
      for (int j = 0; j < kFew<T>; ++j) {
        loss.linear[q * kFew<T> + j] += double(linear[q][j]);
        loss.product[q * kFew<T> + j] *= double(product[q][j]);
      }
    }
    loss.flushed();
    clear();
  }
};

// By which multiples of the outputs an input moves, from its products with them.
template <class T, bool WithLoss>
INLINE void logistic(const Outputs<T>& o, T alpha, const Few<T>* f, Few<T>* g, Partial<T>& partial) {
  using F = Few<T>;
  for (int q = 0; q < kParts<T>; ++q) {
    const F label = load<F>(o.label + q * kFew<T>), weight = load<F>(o.weight + q * kFew<T>);
    const F one = splat<F>(T(1)), e = exponential(f[q] < 0 ? f[q] : -f[q]), p = e + T(1);
    g[q] = alpha * weight * (label - (f[q] < 0 ? e : one) / p);
    if constexpr (WithLoss) {
      const F h = label > 0 ? -f[q] : f[q];
      partial.linear[q] += weight * (h > 0 ? h : F{});
      if (o.most <= kMost) {
        partial.product[q] *= weight > 0 ? p : one;
        for (int k = 1; k < o.most; ++k) partial.product[q] *= weight > T(k) ? p : one;
      } else {
        for (int j = 0; j < kFew<T>; ++j) partial.linear[q][j] += weight[j] * std::log(p[j]);
      }
    }
  }
}

// Products of an input with R outputs, and in the lane after them with the input before.
template <class T, int R, int Blocks, bool Before>
INLINE void products(const T* x, const T* before, T* const* y, int columns, Few<T>* f) {
  using V = Vector<T>;
  if (Blocks) columns = Blocks * kBlock;
  V sum[kSums] = {};
#pragma GCC unroll 8
  for (int c = 0; c < columns; c += kWidth<T>) {
    const V a = load<V>(x + c);
    for (int j = 0; j < R; ++j) sum[j] = multiply_add(a, load<V>(y[j] + c), sum[j]);
    if (Before) sum[R] = multiply_add(a, load<V>(before + c), sum[R]);
  }
  for (int q = 0; q < kParts<T>; ++q) f[q] = sums<T>(sum + q * kFew<T>);
}

enum class To { scratch, gradient, rows };  // where the change of an input goes

// Moves outputs, or their gradients, by the multiples of the input, and it by those of them.
template <class T, int R, int Blocks, bool Gradient, To Where>
INLINE void update(const T* x, T* to, T lock, T* const* y, T* const* dy, const Few<T>* multiples, int columns) {
  using V = Vector<T>;
  if (Blocks) columns = Blocks * kBlock;
  alignas(64) T each[kSums];
  for (int q = 0; q < kParts<T>; ++q) store(each + q * kFew<T>, multiples[q]);
  V g[R];
  for (int j = 0; j < R; ++j) g[j] = splat<V>(each[j]);
  const V share = splat<V>(lock);
#pragma GCC unroll 8
  for (int c = 0; c < columns; c += kWidth<T>) {
    const V a = load<V>(x + c);
    V dx = {};
    for (int j = 0; j < R; ++j) {
      const V b = load<V>(y[j] + c);
      dx = multiply_add(g[j], b, dx);
      store(dy[j] + c, multiply_add(g[j], a, Gradient ? load<V>(dy[j] + c) : b));
    }
    if (Where == To::scratch) {
      store(to + c, load<V>(to + c) + dx);
    } else {
      store(to + c, multiply_add(share, dx, Where == To::gradient ? load<V>(to + c) : a));
    }
  }
}

// One chunk of outputs that inputs change in turn. What takes long is the way from products to multiples, so those of
// the next input are made meanwhile, with the outputs as they are: by then f = y.x' + g (x.x') for y + g x.
template <class T, int R, int Blocks, bool WithLoss>
void chain(const Tile<T>& t, Loss* loss) {
  const Outputs<T>& o = t.outputs[0];
  T* y[R];
  for (int j = 0; j < R; ++j) y[j] = o.y[j];
  Partial<T> partial;
  Few<T> f[kParts<T>], g[kParts<T>];
  const int m = t.m, columns = t.columns;
  products<T, R, Blocks, false>(t.x[0], nullptr, y, columns, f);
  for (int i = 0; i < m; ++i) {
    T* const x = t.x[i];
    t.prefetch(i);
    logistic<T, WithLoss>(o, t.alpha, f, g, partial);
    const bool ahead = i + 1 < m && t.x[i + 1] != x;
    if (ahead) products<T, R, Blocks, true>(t.x[i + 1], x, y, columns, f);
    update<T, R, Blocks, false, To::rows>(x, x, t.lock[i], y, y, g, columns);
    if (ahead) {
      const T product = f[R / kFew<T>][R % kFew<T>];
      for (int q = 0; q < kParts<T>; ++q) f[q] = multiply_add(g[q], splat<Few<T>>(product), f[q]);
    } else if (i + 1 < m) {
      products<T, R, Blocks, false>(t.x[i + 1], nullptr, y, columns, f);
    }
    if (WithLoss && (i % kFlush == kFlush - 1 || i == m - 1)) partial.flush(*loss);
  }
}

template <class T, int R, bool Gradient, To Where, bool WithLoss>
INLINE void rows(const Tile<T>& t, int i, const Outputs<T>& o, Partial<T>& partial) {
  Few<T> f[kParts<T>], g[kParts<T>];
  products<T, R, 0, false>(t.x[i], nullptr, o.y, t.columns, f);
  logistic<T, WithLoss>(o, t.alpha, f, g, partial);
  update<T, R, 0, Gradient, Where>(t.x[i], Where == To::scratch ? t.scratch : t.dx[i], t.lock[i], o.y, o.dy, g,
                                   t.columns);
}

template <class T, bool Gradient, To Where, bool WithLoss>
INLINE void any_rows(const Tile<T>& t, int i, const Outputs<T>& o, Partial<T>& partial) {
  if (o.rows == 6) {
    rows<T, 6, Gradient, Where, WithLoss>(t, i, o, partial);
  } else if (o.rows == 4) {
    rows<T, 4, Gradient, Where, WithLoss>(t, i, o, partial);
  } else {
    rows<T, 2, Gradient, Where, WithLoss>(t, i, o, partial);
  }
}

// Any number of outputs, and gradients.
template <class T, bool Gradient, bool WithLoss>
void each(const Tile<T>& t, Loss* loss) {
  using V = Vector<T>;
  Partial<T> partial;
  for (int i = 0; i < t.m; ++i) {
    t.prefetch(i);
    if (Gradient && t.chunks == 1) {
      any_rows<T, true, To::gradient, WithLoss>(t, i, t.outputs[0], partial);
    } else {
      for (int k = 0; k < t.chunks; ++k) any_rows<T, Gradient, To::scratch, WithLoss>(t, i, t.outputs[k], partial);
      T* to = Gradient ? t.dx[i] : t.x[i];
      for (int c = 0; c < t.columns; c += kWidth<T>) {
        store(to + c, multiply_add(splat<V>(t.lock[i]), load<V>(t.scratch + c), load<V>(to + c)));
        store(t.scratch + c, V{});
      }
    }
    if (WithLoss && (i % kFlush == kFlush - 1 || i == t.m - 1)) partial.flush(*loss);
  }
}

template <class T, bool WithLoss>
INLINE void chain(const Tile<T>& t, Loss* loss) {
  const int rows = t.outputs[0].rows;
  if (rows == 2) return chain<T, 2, 0, WithLoss>(t, loss);
  if (rows == 4) return chain<T, 4, 0, WithLoss>(t, loss);
  if constexpr (sizeof(T) == 4 && kBytes > 16) {
    switch (t.columns / kBlock) {  // usual lengths: a twentieth faster with loops of a known length
      case 4:
        return chain<T, 6, 4, WithLoss>(t, loss);
      case 7:
        return chain<T, 6, 7, WithLoss>(t, loss);
      case 8:
        return chain<T, 6, 8, WithLoss>(t, loss);
      case 13:
        return chain<T, 6, 13, WithLoss>(t, loss);
      case 16:
        return chain<T, 6, 16, WithLoss>(t, loss);
      case 19:
        return chain<T, 6, 19, WithLoss>(t, loss);
    }
  }
  chain<T, 6, 0, WithLoss>(t, loss);
}

template <class T, bool Gradient, bool WithLoss>
INLINE void step(const Tile<T>& t, Loss* loss) {
  if (Gradient || t.chunks > 1) {
    each<T, Gradient, WithLoss>(t, loss);
  } else {
    chain<T, WithLoss>(t, loss);
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
