#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

// Walker's alias table: a word by one look-up, of two random words.
namespace sgns {

inline constexpr uint32_t kAlways = 0xffffffffu;

struct AliasTable {
  const uint32_t* threshold;
  const uint32_t* alias;
  uint32_t size;

  uint32_t draw(uint32_t r, uint32_t s) const {
    const uint32_t i = uint32_t(uint64_t(r) * size >> 32);
    const uint32_t other = alias[i];  // no branch, which would be guessed wrong every third time
    return other ^ ((other ^ i) & (0u - uint32_t(s < threshold[i])));
  }

  // The probability of the commonest word.
  double most() const {
    std::vector<double> share(size);
    for (uint32_t i = 0; i < size; ++i) {
      const double own = threshold[i] == kAlways ? 1 : threshold[i] * 0x1p-32;
      share[i] += own, share[alias[i]] += 1 - own;
    }
    return *std::max_element(share.begin(), share.end()) / size;
  }
};

// Vose's construction, with the small and the large in ascending order on two stacks; p need not sum to one.
inline void build_alias(const double* p, uint32_t n, uint32_t* threshold, uint32_t* alias) {
  double sum = 0;
  for (uint32_t i = 0; i < n; ++i) sum += p[i];
  std::vector<double> q(n);
  std::vector<uint32_t> small, large;
  for (uint32_t i = 0; i < n; ++i) {
    q[i] = p[i] * n / sum;
    (q[i] < 1 ? small : large).push_back(i);
    threshold[i] = kAlways, alias[i] = i;
  }
  while (!small.empty() && !large.empty()) {
    const uint32_t a = small.back(), b = large.back();
    small.pop_back();
    threshold[a] = uint32_t(std::min(4294967295.0, q[a] * 4294967296.0));
    alias[a] = b;
    q[b] -= 1 - q[a];
    if (q[b] < 1) {
      large.pop_back();
      small.push_back(b);
    }
  }
}

}  // namespace sgns
