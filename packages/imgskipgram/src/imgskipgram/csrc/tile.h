#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <vector>

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
      const uint64_t bits = std::bit_cast<uint64_t>(p);
      p = std::bit_cast<double>((bits & ((uint64_t(1) << 52) - 1)) | uint64_t(1023) << 52);
      exponent += int64_t(bits >> 52) - 1023;
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

// To be written: cache lines are taken from other cores at once, not read first and taken later.
template <bool Written = false>
inline __attribute__((always_inline)) void prefetch_bytes(const void* row, int bytes) {
  for (int c = 0; c < bytes; c += 64) __builtin_prefetch(static_cast<const char*>(row) + c, Written);
}

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
  const void* const* ahead = nullptr;  // [expected] rows of so many bytes that will be needed soon
  int expected = 0, bytes = 0;
  bool written = false;  // by the worker that fetches them

  // How many to fetch with each input: all at once they would keep those that are needed now waiting.
  int share() const { return (expected + m - 1) / m; }
  inline __attribute__((always_inline)) void prefetch(int i, int share) const {
    for (int k = share * i; k < std::min(share * (i + 1), expected); ++k) {
      if (written) {
        prefetch_bytes<true>(ahead[k], bytes);
      } else {
        prefetch_bytes(ahead[k], bytes);
      }
    }
  }
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
  // Output i is another row.
  void point(int i, T* y) {
    Outputs<T>& o = chunks_[size_t(i / kRows)];
    o.y[i % kRows] = o.dy[i % kRows] = y;
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
