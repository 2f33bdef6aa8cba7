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

// exp(x) for x <= 0: 2^n times a polynomial of what is left, |r| <= log(2) / 2, which is exact to 3e-9.
INLINE Few<float> exponential(Few<float> x) {
  using V = Few<float>;
  typedef uint32_t Bits __attribute__((vector_size(sizeof(V))));
  x = larger(splat<V>(-86.f), x);
  const V shifted = multiply_add(x, splat<V>(1.44269504f), splat<V>(0x1.8p23f)), n = shifted - 0x1.8p23f;
  const V r = multiply_add(n, splat<V>(-0.693147181f), x), r2 = r * r;
  const V low = multiply_add(r, splat<V>(.166664201f), splat<V>(.499999921f));
  const V middle = multiply_add(r, splat<V>(.00837482406f), splat<V>(.0416682262f));
  const V high = multiply_add(r2, splat<V>(.00138368356f), middle);
  const V p = multiply_add(multiply_add(high, r2, low), r2, r + 1.f);
  return V(Bits(p) + (Bits(shifted) << 23));
}

INLINE Few<double> exponential(Few<double> x) {
  using V = Few<double>;
  typedef uint64_t Bits __attribute__((vector_size(sizeof(V))));
  x = larger(splat<V>(-708.), x);
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

// What outputs want, for h = sign f + offset: the loss is weight log(1 + exp(h)), and an input moves by the multiple
// step s(h). Lanes without an output have an h of which nothing comes.
template <class T>
struct Wants {
  Few<T> sign[kParts<T>], offset[kParts<T>], weight[kParts<T>], step[kParts<T>];
  int most;

  INLINE Wants(const Outputs<T>& o, T alpha) : most(o.most) {
    for (int q = 0; q < kParts<T>; ++q) {
      const Few<T> zero = {}, one = splat<Few<T>>(T(1));
      weight[q] = load<Few<T>>(o.weight + q * kFew<T>);
      sign[q] = weight[q] > 0 ? (load<Few<T>>(o.label + q * kFew<T>) > 0 ? -one : one) : zero;
      offset[q] = weight[q] > 0 ? zero : splat<Few<T>>(T(-100));
      step[q] = -alpha * weight[q] * sign[q];
    }
  }
};

// Results of a few inputs in registers, until they go to the Loss.
template <class T>
struct Partial {
  Few<T> linear[kParts<T>], product[kParts<T>];

  INLINE Partial() { clear(); }
  INLINE void clear() {
    for (int q = 0; q < kParts<T>; ++q) linear[q] = Few<T>{}, product[q] = splat<Few<T>>(T(1));
  }
  // Of p = 1 + exp(-|h|).
  INLINE void add(const Wants<T>& wants, int q, Few<T> h, Few<T> p) {
    const Few<T> weight = wants.weight[q], one = splat<Few<T>>(T(1));
    linear[q] = multiply_add(weight, larger(Few<T>{}, h), linear[q]);
    if (wants.most <= kMost) {
      product[q] *= p;
      for (int k = 1; k < wants.most; ++k) product[q] *= weight > T(k) ? p : one;
    } else {
      for (int j = 0; j < kFew<T>; ++j) linear[q][j] += weight[j] * std::log(p[j]);
    }
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
INLINE void logistic(const Wants<T>& wants, const Few<T>* f, Few<T>* g, Partial<T>& partial) {
  for (int q = 0; q < kParts<T>; ++q) {
    const Few<T> h = multiply_add(f[q], wants.sign[q], wants.offset[q]);
    const Few<T> one = splat<Few<T>>(T(1)), e = exponential(h < 0 ? h : -h), p = e + T(1);
    g[q] = wants.step[q] * (h < 0 ? e : one) / p;
    if (WithLoss) partial.add(wants, q, h, p);
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

// The update by one input, and the products of the next but one with the outputs that it leaves.
template <class T, int R, int Blocks>
INLINE void update_and_products(T* x, T lock, const Few<T>* multiples, const T* between, const T* next, T* const* y,
                                int columns, Few<T>* f) {
  using V = Vector<T>;
  if (Blocks) columns = Blocks * kBlock;
  alignas(64) T each[kSums];
  for (int q = 0; q < kParts<T>; ++q) store(each + q * kFew<T>, multiples[q]);
  V g[R], sum[kSums] = {};
  for (int j = 0; j < R; ++j) g[j] = splat<V>(each[j]);
  const V share = splat<V>(lock);
#pragma GCC unroll 8
  for (int c = 0; c < columns; c += kWidth<T>) {
    const V a = load<V>(x + c);
    V b[R], dx = {};
    for (int j = 0; j < R; ++j) {
      b[j] = load<V>(y[j] + c);
      dx = multiply_add(g[j], b[j], dx);
      b[j] = multiply_add(g[j], a, b[j]);
      store(y[j] + c, b[j]);
    }
    store(x + c, multiply_add(share, dx, a));
    const V n = load<V>(next + c);  // perhaps what was just stored
    for (int j = 0; j < R; ++j) sum[j] = multiply_add(n, b[j], sum[j]);
    sum[R] = multiply_add(n, load<V>(between + c), sum[R]);
  }
  for (int q = 0; q < kParts<T>; ++q) f[q] = sums<T>(sum + q * kFew<T>);
}

// One chunk of outputs that inputs change in turn. What takes long is the way from products to multiples: meanwhile
// the outputs move by the input before, and the products of the next input with them are made. What is missing there
// is known: f = y.x' + g (x.x') for y + g x.
template <class T, int R, int Blocks, bool WithLoss>
void chain(const Tile<T>& t, Loss* loss) {
  const Outputs<T>& o = t.outputs[0];
  T* y[R];
  for (int j = 0; j < R; ++j) y[j] = o.y[j];
  const Wants<T> wants(o, t.alpha);
  Partial<T> partial;
  Few<T> f[kParts<T>] = {}, g[kParts<T>], late[kParts<T>] = {};
  const int m = t.m, columns = t.columns, share = t.share();
  int moved = 0;  // inputs that have moved, with the outputs by them: all, or all but the last
  for (int i = 0; i < m; ++i) {
    T* const x = t.x[i];
    if (moved == i) products<T, R, Blocks, false>(x, nullptr, y, columns, f);
    t.prefetch(i, share);
    logistic<T, WithLoss>(wants, f, g, partial);
    if (i + 1 < m && t.x[i + 1] != x) {
      if (moved < i) {
        update_and_products<T, R, Blocks>(t.x[i - 1], t.lock[i - 1], late, x, t.x[i + 1], y, columns, f);
        moved = i;
      } else {
        products<T, R, Blocks, true>(t.x[i + 1], x, y, columns, f);
      }
      const T product = f[R / kFew<T>][R % kFew<T>];
      for (int q = 0; q < kParts<T>; ++q) {
        f[q] = multiply_add(g[q], splat<Few<T>>(product), f[q]);
        late[q] = g[q];
      }
    } else {
      for (; moved <= i; ++moved) {
        T* const to = t.x[moved];
        update<T, R, Blocks, false, To::rows>(to, to, t.lock[moved], y, y, moved < i ? late : g, columns);
      }
    }
    if (WithLoss && (i % kFlush == kFlush - 1 || i == m - 1)) partial.flush(*loss);
  }
}

template <class T, int R, bool Gradient, To Where, bool WithLoss>
INLINE void rows(const Tile<T>& t, int i, const Outputs<T>& o, Partial<T>& partial) {
  Few<T> f[kParts<T>], g[kParts<T>];
  products<T, R, 0, false>(t.x[i], nullptr, o.y, t.columns, f);
  const Wants<T> wants(o, t.alpha);
  logistic<T, WithLoss>(wants, f, g, partial);
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
  const int share = t.share();
  Partial<T> partial;
  for (int i = 0; i < t.m; ++i) {
    t.prefetch(i, share);
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
  if constexpr (kBytes > 16) {
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

// Of double precision nobody expects speed: it goes without a chain, which takes much code.
template <class T, bool Gradient, bool WithLoss>
INLINE void step(const Tile<T>& t, Loss* loss) {
  if constexpr (!Gradient && sizeof(T) == 4) {
    if (t.chunks == 1) return chain<T, WithLoss>(t, loss);
  }
  each<T, Gradient, WithLoss>(t, loss);
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
