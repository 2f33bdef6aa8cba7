#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#if defined(__x86_64__) && defined(__linux__)
#define SGNS_X86
#include <immintrin.h>
#endif

// The tile: m inputs, one after the other, each against n outputs; logistic loss, its gradients and the update.
namespace sgns {

inline constexpr int kBlock = 16;  // a row is a whole number of these
inline constexpr int kRows = 6;    // outputs whose sums stay in registers
inline constexpr int kSums = 8;    // kRows, filled up to a power of two
inline constexpr int kFlush = 5;   // inputs, and
inline constexpr int kMost = 24;   // repetitions, whose products of 1 + exp(-|f|), each at most 2, fit a float

// The sum of -log s(f) is the sum of max(-f, 0) and one logarithm of the product of 1 + exp(-|f|).
struct alignas(64) Loss {
  double linear[kSums] = {}, product[kSums] = {1, 1, 1, 1, 1, 1, 1, 1};
  int64_t exponent = 0;  // of the products, as far as it was taken out of them
  int flushes = 0;

  // Each flush multiplies by at most 2^(kFlush * kMost).
  void flushed() {
    if (++flushes < 8) return;
    flushes = 0;
    for (double& p : product) {
      int e;
      p = std::frexp(p, &e);
      exponent += e;
    }
  }
  double sum() const {
    double all = double(exponent) * std::log(2.);
    for (int j = 0; j < kSums; ++j) all += linear[j] + std::log(product[j]);
    return all;
  }
};

template <class T>
struct alignas(64) Outputs {
  T label[kBlock], weight[kBlock];  // 1 or 0; how often it counts
  T* y[kRows];
  T* dy[kRows];
  int rows;  // even
  int most;  // the largest weight
};

template <class T>
struct Tile {
  T* const* x;    // [m]
  T* const* dx;   // [m], if gradients are wanted; else x is updated, and the next input sees what this one did
  const T* lock;  // [m], the share of its update that an input takes
  int m;
  const Outputs<T>* outputs;  // all different
  int chunks;
  T* scratch;  // [columns] zeros
  T alpha;
  int columns;
};

template <class T>
using Step = void (*)(const Tile<T>&, Loss*);  // null: no loss

// Outputs in chunks of at most kRows, an odd one filled up by a row of zeros that counts nothing.
template <class T>
class OutputList {
 public:
  explicit OutputList(T* zeros) : zeros_(zeros) {}
  void clear() { n_ = 0; }
  void add(T* y, T* dy, T label) {
    const size_t k = size_t(n_ / kRows), j = size_t(n_ % kRows);
    if (k == chunks_.size()) chunks_.emplace_back();
    Outputs<T>& o = chunks_[k];
    if (j % 2 == 0) {
      if (j == 0) {
        o.most = 1;
        std::fill(o.label, o.label + kBlock, T(0));
        std::fill(o.weight, o.weight + kBlock, T(0));
      }
      o.y[j + 1] = o.dy[j + 1] = zeros_;
      o.rows = int(j) + 2;
    }
    o.y[j] = y, o.dy[j] = dy, o.label[j] = label, o.weight[j] = 1;
    ++n_;
  }
  // One more of output i.
  void repeat(int i) {
    Outputs<T>& o = chunks_[size_t(i / kRows)];
    o.weight[i % kRows] += 1;
    o.most = std::max(o.most, int(o.weight[i % kRows]));
  }
  int size() const { return n_; }
  int chunks() const { return (n_ + kRows - 1) / kRows; }
  const Outputs<T>* data() const { return chunks_.data(); }

 private:
  T* zeros_;
  int n_ = 0;
  std::vector<Outputs<T>> chunks_;
};

}  // namespace sgns

#include "tile_avx2.h"
#include "tile_avx512.h"
#include "tile_scalar.h"

namespace sgns {

// Which instructions this machine has kernels for: the widest first.
inline std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
#ifdef SGNS_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("x86-64-v4")) names.emplace_back("avx512");
  if (__builtin_cpu_supports("x86-64-v3")) names.emplace_back("avx2");
#endif
  names.emplace_back("scalar");
  return names;
}

template <class T, bool Gradient>
Step<T> choose(const std::string& isa) {
#ifdef SGNS_X86
  if (isa == "avx512") return avx512::step<T, Gradient>;
  if (isa == "avx2") return avx2::step<T, Gradient>;
#endif
  return scalar::step<T, Gradient>;
}

}  // namespace sgns
