#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

namespace iounet {

template <class T>
using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;

// Integers that ascend as the numbers do. Zeros are equal; NaN is the largest number, as in torch.
template <class T>
inline Bits<T> ascending(T x) {
  constexpr Bits<T> kSign = Bits<T>(1) << (8 * sizeof(T) - 1);
  if (std::isnan(x)) return ~Bits<T>(0);
  const auto bits = std::bit_cast<Bits<T>>(x + 0);
  return bits & kSign ? ~bits : bits | kSign;
}

template <class T>
inline Bits<T> descending(T x) {
  return ~ascending(x);
}

template <class Key>
struct Item {
  Key key;
  int32_t row;
};

// Sorts by key; equal keys stay in order. A byte in which no two keys differ costs nothing.
template <class Key>
void stable_sort(std::vector<Item<Key>>& items) {
  Key differ = 0;
  for (const auto& item : items) differ |= item.key ^ items[0].key;
  std::vector<Item<Key>> sorted(items.size());
  for (size_t shift = 0; shift < 8 * sizeof(Key); shift += 8) {
    if ((differ >> shift & 0xFF) == 0) continue;
    uint32_t next[256] = {};
    for (const auto& item : items) ++next[item.key >> shift & 0xFF];
    for (uint32_t sum = 0; uint32_t& count : next) sum += std::exchange(count, sum);
    for (const auto& item : items) sorted[next[item.key >> shift & 0xFF]++] = item;
    items.swap(sorted);
  }
}

}  // namespace iounet
