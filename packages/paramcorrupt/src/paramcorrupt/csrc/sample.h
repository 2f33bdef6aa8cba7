#pragma once

#include <cmath>
#include <functional>
#include <vector>

#include "blocks.h"

// Where a rank lies, judged by a few elements.
namespace paramcorrupt {

// Keys around a rank: of all keys, unless told.
template <class K>
struct Bracket {
  K low = -1, high = kLastKey<K>;
};

// How many keys make it least work to sample them and to sort the candidates that they leave.
inline int64_t samples_for(int64_t size, double share) {
  const double some = 2 * std::sqrt(double(size)), more = std::pow(4 * double(size) * std::sqrt(share), 2.0 / 3);
  return int64_t(std::min(some + more, 131072.0));
}

// One key of each of `count` parts of the list, at random, always the same. Gradients are alike in neighbours.
template <class S>
std::vector<Bits<S>> sample(const Blocks& blocks, int64_t count) {
  std::vector<Bits<S>> keys(count);
  const double step = double(blocks.size()) / double(count);
  auto source = blocks.sources().begin();
  uint64_t state = 88172645463325252;
  KeyTile<Bits<S>> tile{};
  for (int64_t k = 0; k < count; ++k) {
    state = state * 6364136223846793005 + 1442695040888963407;
    const double random = double(state >> 11) * 0x1p-53;
    const auto place = std::min(int64_t((double(k) + random) * step), blocks.size() - 1);
    while (place >= source->start + source->size) ++source;
    keys[k] = key(*bits_of<S>(*source, place - source->start, 1, tile));
  }
  return keys;
}

// Holds the n-th largest key but for about one time in 10,000.
template <class S>
Bracket<Bits<S>> bracket_of(const Blocks& blocks, int64_t n) {
  using K = Bits<S>;
  const double share = double(n) / double(blocks.size());
  const int64_t count = samples_for(blocks.size(), share);
  Bracket<K> result;
  if (2 * count > blocks.size()) return result;
  std::vector<K> keys = sample<S>(blocks, count);
  const double rank = share * double(count), spread = 4 * std::sqrt(rank * (1 - share)) + 8;
  const auto first = int64_t(std::floor(rank - spread)) - 1, last = int64_t(std::ceil(rank + spread)) + 1;
  auto end = keys.end();
  if (last < count) {
    end = keys.begin() + last;
    std::nth_element(keys.begin(), end, keys.end(), std::greater());
    result.low = *end;
  }
  if (first >= 0) {
    std::nth_element(keys.begin(), keys.begin() + first, end, std::greater());
    result.high = keys[first];
  }
  return result;
}

}  // namespace paramcorrupt
