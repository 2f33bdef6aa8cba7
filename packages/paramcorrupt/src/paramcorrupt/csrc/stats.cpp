// Sums over the elements of each tensor, in float64, in an order that depends on the sizes of the tensors alone.
#include <torch/csrc/stable/library.h>

#include <cmath>

#include "blocks.h"
#include "find.h"
#include "powers.h"

namespace paramcorrupt {
namespace {

constexpr int kLanes = 32;

inline double total(double (&lanes)[kLanes]) {
  for (int n = kLanes / 2; n; n /= 2)
    for (int k = 0; k < n; ++k) lanes[k] += lanes[k + n];
  return lanes[0];
}

// Calls add(element, lane) for n elements.
template <class Add>
inline void in_lanes(int n, const Add& add) {
  int i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int k = 0; k < kLanes; ++k) add(i + k, k);
  for (int k = 0; i < n; ++i, ++k) add(i, k);
}

struct Stats {
  double sum, squares, largest, nonzeros, not_finite;

  void add(const Stats& other) {
    sum += other.sum;
    squares += other.squares;
    // A NaN is larger than anything.
    largest = other.largest <= largest || std::isnan(largest) ? largest : other.largest;
    nonzeros += other.nonzeros;
    not_finite += other.not_finite;
  }
};

template <class S>
CLONES Stats stats_of(const S* x, int n) {
  using K = Bits<S>;
  double sums[kLanes] = {}, squares[kLanes] = {};
  in_lanes(n, [&](int i, int lane) {
    const double a = std::abs(double(widen(x[i])));
    sums[lane] += a;
    squares[lane] += a * a;
  });
  K largest = 0, nonzeros = 0, not_finite = 0;
  for (int i = 0; i < n; ++i) {
    const K k = key(std::bit_cast<K>(x[i]));
    largest = std::max(largest, k);
    nonzeros += K(k != 0);
    not_finite += K(k >= kInfinityKey<S>);
  }
  return {total(sums), total(squares), magnitude<S>(largest), double(nonzeros), double(not_finite)};
}

// Adds up what each block of a tensor has, in order.
template <class Part, class Add>
void reduce(const Blocks& blocks, const std::vector<Part>& parts, const Add& add) {
  int64_t source = 0, number = 0;
  for (const Source& x : blocks.sources()) {
    for (const int64_t end = x.first_block + (x.size + kBlock - 1) / kBlock; number < end; ++number)
      add(source, parts[number]);
    ++source;
  }
}

void boxed_grad_stats(StableIValue* stack, uint64_t, uint64_t) {
  const TensorList list(stack[0]);
  const Blocks blocks(list);
  std::vector<Stats> parts(blocks.count());
  blocks.run([&](const auto& each) {
    each([&](const Source& source, const Block& block) {
      with_type(source.type, [&]<class S>(S) {
        parts[block.number] = stats_of(static_cast<const S*>(source.data) + block.begin, block.size);
      });
    });
  });
  const Tensor result = new_matrix(int64_t(list.size()), sizeof(Stats) / sizeof(double));
  auto* const to = static_cast<Stats*>(result.mutable_data_ptr());
  std::fill_n(to, list.size(), Stats{});
  reduce(blocks, parts, [to](int64_t source, const Stats& part) { to[source].add(part); });
  stack[0] = torch::stable::detail::from(result);
}

// Magnitudes over `unit`, all of them or those at `places`.
template <class S>
CLONES void scale(const Bits<S>* bits, const uint16_t* places, int n, double unit, double* __restrict to) {
  if (places)
    for (int i = 0; i < n; ++i) to[i] = magnitude<S>(key(bits[places[i]])) / unit;
  else
    for (int i = 0; i < n; ++i) to[i] = magnitude<S>(key(bits[i])) / unit;
}

template <class S>
CLONES double sum_of_powers(const double* a, int n, double q) {
  double sums[kLanes] = {};
  if (q == 1)
    in_lanes(n, [&](int i, int lane) { sums[lane] += a[i]; });
  else if (q == 2)
    in_lanes(n, [&](int i, int lane) { sums[lane] += a[i] * a[i]; });
  else
    in_lanes(n, [&](int i, int lane) { sums[lane] += power_of<S>(a[i], q); });
  return total(sums);
}

void boxed_power_sum(StableIValue* stack, uint64_t, uint64_t) {
  const TensorList list(stack[0]);
  const auto q = argument<double>(stack[1]), unit = argument<double>(stack[2]);
  const auto least = argument<int64_t>(stack[3]);
  const Blocks blocks(list);
  std::vector<double> parts(blocks.count());
  with_type(blocks.type(), [&]<class S>(S) {
    using K = Bits<S>;
    const auto above = K(std::clamp<int64_t>(least - 1, -1, kLastKey<K>));
    blocks.run([&](const auto& each) {
      KeyTile<K> tile;
      uint16_t places[kBlock + kSlack];
      double scaled[kBlock];
      each([&](const Source& source, const Block& block) {
        const K* bits = bits_of<S>(source, block, tile);
        const int n = above < 0 ? block.size : find_above(bits, block.size, above, places);
        scale<S>(bits, above < 0 ? nullptr : places, n, unit, scaled);
        parts[block.number] = sum_of_powers<S>(scaled, n, q);
      });
    });
  });
  const Tensor result = new_vector(int64_t(list.size()), aoti_torch_dtype_float64());
  double* const to = result.mutable_data_ptr<double>();
  std::fill_n(to, list.size(), 0.0);
  reduce(blocks, parts, [to](int64_t source, double part) { to[source] += part; });
  stack[0] = torch::stable::detail::from(result);
}

}  // namespace
}  // namespace paramcorrupt

STABLE_TORCH_LIBRARY_IMPL(paramcorrupt, CPU, m) {
  m.impl("grad_stats", paramcorrupt::boxed_grad_stats);
  m.impl("power_sum", paramcorrupt::boxed_power_sum);
}
