#pragma once

#include <optional>
#include <utility>
#include <vector>

#include "find.h"
#include "output.h"

namespace paramcorrupt {

// Collects what a threshold selects: the keys above it, and the first `ties` of those that equal it.
template <class S>
class Collection {
 public:
  using K = Bits<S>;

  Collection(const Blocks& blocks, K key, int64_t ties) : blocks_(blocks), key_(key), ties_(ties) {}

  // `expected` is how many these are, if the threshold is that of this list: then one pass is enough for one thread.
  Output<S> run(int64_t expected) const {
    if (torch::stable::get_num_threads() == 1 && 0 <= expected && expected <= blocks_.size()) {
      Output<S> output(blocks_, expected);
      if (write(0, blocks_.count(), 0, ties_, output) == expected) return output;
    }
    const std::vector<Count> counts = count();
    // Where the output of block `number` begins, and the ties that are left for it.
    const auto before = [&](int64_t number) {
      int64_t above = 0, equal = 0;
      for (int64_t i = 0; i < number; ++i) {
        above += counts[i].above;
        equal += counts[i].equal;
      }
      equal = std::min(equal, ties_);
      return std::pair(above + equal, ties_ - equal);
    };
    Output<S> output(blocks_, before(blocks_.count()).first);
    torch::stable::parallel_for(0, blocks_.count(), kGrain / kBlock, [&](int64_t first, int64_t last) {
      const auto [at, ties] = before(first);
      write(first, last, at, ties, output);
    });
    return output;
  }

 private:
  struct Count {
    uint16_t above, equal;
  };

  std::vector<Count> count() const {
    std::vector<Count> counts(blocks_.count());
    blocks_.run([&](const auto& each) {
      KeyTile<K> tile;
      uint16_t places[kBlock + kSlack];
      each([&](const Source& source, const Block& block) {
        const K* bits = bits_of<S>(source, block, tile);
        const int above = find_above(bits, block.size, key_, places);
        const int from = find_above(bits, block.size, K(key_ - 1), places);
        counts[block.number] = {uint16_t(above), uint16_t(from - above)};
      });
    });
    return counts;
  }

  // Writes what is selected of blocks first .. last from `at` on. Returns the end.
  int64_t write(int64_t first, int64_t last, int64_t at, int64_t ties, Output<S>& output) const {
    KeyTile<K> tile;
    uint16_t places[kBlock + kSlack];
    blocks_.walk(first, last, [&](const Source& source, const Block& block) {
      const K* bits = bits_of<S>(source, block, tile);
      const int selected = select(bits, block.size, ties, places);
      output.write(source, block, at, selected, places, [&](int i) { return bits[places[i]]; });
      at += selected;
    });
    return at;
  }

  int select(const K* bits, int n, int64_t& ties, uint16_t* places) const {
    if (ties == 0) return find_above(bits, n, key_, places);
    const int found = find_above(bits, n, K(key_ - 1), places);
    int selected = 0;
    for (int i = 0; i < found; ++i) {
      const bool equal = key(bits[places[i]]) == key_, taken = !equal || ties > 0;
      places[selected] = places[i];
      selected += taken;
      ties -= equal && taken;
    }
    return selected;
  }

  const Blocks& blocks_;
  const K key_;
  const int64_t ties_;
};

}  // namespace paramcorrupt
