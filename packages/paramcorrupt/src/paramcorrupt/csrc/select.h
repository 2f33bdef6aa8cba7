#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <mutex>

#include "blocks.h"
#include "find.h"
#include "sample.h"

// The n-th largest magnitude of a list of tensors: a sample brackets it, one pass counts what is above the bracket and
// keeps what is in it.
namespace paramcorrupt {

inline constexpr int64_t kCandidates = 6 << 20;  // bytes, at most

enum Path : int64_t { kSampled = 1, kHistogram = 2 };

template <class S>
class Selection {
 public:
  using K = Bits<S>;

  Selection(const Blocks& blocks, int64_t n)
      : blocks_(blocks),
        n_(n),
        capacity_(std::clamp<int64_t>(blocks.size() / 20, 1 << 16, kCandidates / int64_t(sizeof(K)))),
        candidates_(new K[std::min(capacity_, blocks.size())]) {}

  // The key, how many are above it, how many of those that have it belong to the n largest, the path.
  std::array<int64_t, 4> run(const Bracket<K>& bracket) {
    if (search(bracket)) return {key_, above_, n_ - above_, kSampled};
    while (!search(refined())) continue;
    return {key_, above_, n_ - above_, kHistogram};
  }

 private:
  // Whether the key is on the edges of a bracket, or among not too many within. Else it is in `rest_`.
  bool search(const Bracket<K>& bracket) {
    const auto [low, high] = bracket;
    Edges edges;
    std::mutex mutex;
    std::atomic<int64_t> end = 0;
    blocks_.run([&, low, high](const auto& each) {
      KeyTile<K> tile;
      Edges part;
      uint16_t places[kBlock + kSlack];
      each([&](const Source& source, const Block& block) {
        const K* bits = bits_of<S>(source, block, tile);
        const int found = find_between(bits, block.size, low, high, places, part);
        const int64_t at = end.fetch_add(found, std::memory_order_relaxed);  // their order does not matter
        if (at + found > capacity_) return;
        for (int i = 0; i < found; ++i) candidates_[at + i] = key(bits[places[i]]);
      });
      const std::lock_guard lock(mutex);
      edges.add(part);
    });
    const int64_t kept = end, to_high = edges.above + edges.high, to_low = to_high + kept;
    if (n_ <= edges.above) return missed(high, kLastKey<K>);
    if (n_ <= to_high) return reached(high, edges.above);
    if (n_ > to_low + edges.low) return missed(-1, low - 1);
    if (n_ > to_low) return reached(low, to_low);
    if (kept > capacity_) return missed(low, high - 1);
    K* const begin = candidates_.get();
    K* const nth = begin + (n_ - to_high - 1);
    std::nth_element(begin, nth, begin + kept, std::greater());
    return reached(*nth, to_high + std::count_if(begin, nth, [nth](K k) { return k > *nth; }));
  }

  bool reached(K key, int64_t above) {
    key_ = key;
    above_ = above;
    return true;
  }

  bool missed(K low, K high) {
    rest_ = {low, high};
    return false;
  }

  // The bin of a histogram of `rest_` that the key is in.
  Bracket<K> refined() const {
    constexpr int kBits = sizeof(K) == 2 ? 15 : 12;
    const auto [low, high] = rest_;
    const auto width = std::make_unsigned_t<K>(high - low - 1);
    const int shift = std::max(0, int(std::bit_width(width)) - kBits);
    std::vector<int64_t> bins((width >> shift) + 1);
    Edges edges;
    std::mutex mutex;
    blocks_.run([&, low, high](const auto& each) {
      KeyTile<K> tile;
      Edges part;
      std::vector<int64_t> part_bins(bins.size());
      uint16_t places[kBlock + kSlack];
      each([&](const Source& source, const Block& block) {
        const K* bits = bits_of<S>(source, block, tile);
        const int found = find_between(bits, block.size, low, high, places, part);
        for (int i = 0; i < found; ++i) ++part_bins[(key(bits[places[i]]) - low - 1) >> shift];
      });
      const std::lock_guard lock(mutex);
      edges.add(part);
      std::ranges::transform(bins, part_bins, bins.begin(), std::plus());
    });
    bins.back() += edges.high;
    size_t bin = bins.size();
    for (int64_t above = edges.above; above < n_;) above += bins[--bin];
    const K below = low + (K(bin) << shift);
    return {below, K(below + std::min<int64_t>(high - below, int64_t(1) << shift))};
  }

  const Blocks& blocks_;
  const int64_t n_, capacity_;
  const std::unique_ptr<K[]> candidates_;
  Bracket<K> rest_;
  K key_ = 0;
  int64_t above_ = 0;
};

}  // namespace paramcorrupt
