#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <stdexcept>
#include <vector>

// A perfect hash of 32-bit keys, by hashing and displacing: one table of 16-bit pilots, then one probe, no chains.
namespace cws {

inline constexpr uint32_t kNoKey = 0xFFFFFFFF;  // in a table of keys: nothing here

// As it lies in a file. Keys that it was not built from get the place of some other key: compare the key found there.
struct PerfectHash {
  const uint16_t* pilots = nullptr;
  uint32_t n_pilots = 0;
  uint32_t size = 0;
  uint32_t seed = 0;

  static uint64_t mix(uint32_t key, uint32_t seed) {
    const uint64_t h = key * (0x9E3779B97F4A7C15u + 2 * uint64_t(seed) * 0xD6E8FEB86659FD93u);
    return h ^ h >> 32;
  }
  static uint32_t scale(uint32_t h, uint32_t n) { return uint32_t(uint64_t(h) * n >> 32); }
  static uint32_t place(uint64_t h, uint32_t pilot, uint32_t size) {
    return scale(uint32_t(h) + pilot * 0x9E3779B1u, size);
  }

  uint32_t slot_of(uint64_t h) const { return place(h, pilots[scale(uint32_t(h >> 32), n_pilots)], size); }
  uint32_t operator()(uint32_t key) const { return slot_of(mix(key, seed)); }
  static uint8_t print(uint64_t h) { return uint8_t(h >> 8); }  // bits that do not choose the place
};

struct PerfectHashArrays {
  std::vector<uint16_t> pilots;
  uint32_t size = 1;
  uint32_t seed = 0;

  PerfectHash view() const { return {pilots.data(), uint32_t(pilots.size()), size, seed}; }
};

// For keys without duplicates. Buckets are placed from the fullest to the emptiest.
inline PerfectHashArrays build_perfect_hash(const std::vector<uint32_t>& keys) {
  constexpr double kLoad = 0.985, kKeysPerPilot = 5;
  PerfectHashArrays out;
  out.size = std::max<uint32_t>(1, uint32_t(double(keys.size()) / kLoad) + 1);
  out.pilots.assign(std::max<size_t>(1, size_t(double(keys.size()) / kKeysPerPilot)), 0);
  const uint32_t n_pilots = uint32_t(out.pilots.size());
  std::vector<uint64_t> hashes(keys.size());
  std::vector<uint32_t> splits, order(n_pilots), places;
  std::vector<bool> taken;
  const auto place_all = [&] {
    splits.assign(n_pilots + 1, 0);
    for (uint32_t key : keys) ++splits[PerfectHash::scale(PerfectHash::mix(key, out.seed) >> 32, n_pilots) + 1];
    std::partial_sum(splits.begin(), splits.end(), splits.begin());
    std::vector<uint32_t> fill(splits.begin(), splits.end() - 1);
    for (uint32_t key : keys) {
      const uint64_t h = PerfectHash::mix(key, out.seed);
      hashes[fill[PerfectHash::scale(uint32_t(h >> 32), n_pilots)]++] = h;
    }
    std::iota(order.begin(), order.end(), 0u);
    std::stable_sort(order.begin(), order.end(),
                     [&](uint32_t a, uint32_t b) { return splits[a + 1] - splits[a] > splits[b + 1] - splits[b]; });
    taken.assign(out.size, false);
    for (uint32_t bucket : order) {
      const uint32_t begin = splits[bucket], end = splits[bucket + 1];
      uint32_t pilot = 0;
      for (;; ++pilot) {
        if (pilot > 0xFFFF) return false;
        places.clear();
        for (uint32_t k = begin; k < end; ++k) {
          const uint32_t p = PerfectHash::place(hashes[k], pilot, out.size);
          if (taken[p] || std::find(places.begin(), places.end(), p) != places.end()) break;
          places.push_back(p);
        }
        if (places.size() == end - begin) break;
      }
      out.pilots[bucket] = uint16_t(pilot);
      for (uint32_t p : places) taken[p] = true;
    }
    return true;
  };
  while (!place_all()) {
    if (++out.seed % 4 == 0) out.size += out.size / 64 + 1;
    if (out.seed > 400) throw std::invalid_argument("keys must differ");
  }
  return out;
}

}  // namespace cws
