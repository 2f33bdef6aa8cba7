#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <unordered_map>
#include <utility>
#include <vector>

#include "perfect.h"
#include "text.h"

// A set of words over symbols: a minimal automaton whose edges lie in a perfect hash of (state, symbol).
namespace cws {

inline constexpr int kLongestMark = 6;  // words of 2..6 symbols make marks
inline constexpr int kMarks = 125;      // 5 begins x 5 ends x 5 insides

// Index of a length among the marks: none, 2, 3, 4, 5 and longer.
constexpr uint8_t mark_of_length(int length) { return uint8_t(length < 2 ? 0 : std::min(length, 5) - 1); }

// The automaton as it lies in a file. A target is 2 * state + (a word ends here); state 0 has no edges.
struct Lexicon {
  const uint32_t* first = nullptr;  // [n_symbols], targets of the root's edges
  const uint8_t* edges = nullptr;   // [hash.size * bytes + 8]: (state * n_symbols + symbol) << target_bits | target
  PerfectHash hash;
  uint32_t n_symbols = 0;
  uint32_t n_states = 0;
  uint32_t bytes = 0;
  uint32_t target_bits = 0;
  const uint8_t* prints = nullptr;  // [hash.size], a byte of each edge's hash, where most of what is absent is refused

  // The edge in a slot.
  uint64_t edge(uint32_t slot) const {
    uint64_t edge;
    std::memcpy(&edge, edges + size_t(slot) * bytes, 8);
    return edge & ~uint64_t(0) >> (64 - 8 * bytes);
  }

  // Its target if it has this key, otherwise 0.
  uint32_t target(uint32_t slot, uint32_t key) const {
    const uint64_t e = edge(slot);
    return uint32_t(e) & ((1u << target_bits) - 1) & (0u - uint32_t(e >> target_bits == key));
  }

  // The target of an edge, 0 for none.
  uint32_t step(uint32_t state, uint32_t symbol) const {
    const uint32_t key = state * n_symbols + symbol;
    return target(hash(key), key);
  }

  // Bytes for `prints`.
  std::vector<uint8_t> make_prints() const {
    std::vector<uint8_t> out(hash.size);
    for (uint32_t slot = 0; slot < hash.size; ++slot) {
      out[slot] = PerfectHash::print(PerfectHash::mix(uint32_t(edge(slot) >> target_bits), hash.seed));
    }
    return out;
  }

  bool contains(const uint16_t* word, int64_t n) const {
    if (n == 0) return false;
    uint32_t t = first[word[0]];
    for (int64_t i = 1; i < n; ++i) t = step(t >> 1, word[i]);
    return t & 1;
  }
};

struct LexiconArrays {
  std::vector<uint32_t> first;
  std::vector<uint8_t> edges;
  PerfectHashArrays hash;
  uint32_t n_states = 1;
  uint32_t bytes = 1;
  uint32_t target_bits = 1;
  std::vector<uint8_t> prints;

  Lexicon view() const {
    return {first.data(), edges.data(), hash.view(), uint32_t(first.size()),
            n_states,     bytes,        target_bits, prints.data()};
  }
};

// Builds the automaton of words that come in ascending order.
class LexiconBuilder {
 public:
  explicit LexiconBuilder(int n_symbols) : n_symbols_(n_symbols) {}

  void add(const uint16_t* word, int64_t n) {
    int64_t same = 0;
    while (same < n && same < int64_t(previous_.size()) && word[same] == previous_[same]) ++same;
    if (n == 0 || (same == n && same == int64_t(previous_.size()))) return;
    if (same == n || (same < int64_t(previous_.size()) && word[same] < previous_[same])) {
      throw std::invalid_argument("words must be in ascending order");
    }
    for (int64_t i = same; i < n; ++i) {
      if (word[i] >= n_symbols_) throw std::invalid_argument("a symbol is out of range");
    }
    close(same);
    if (int64_t(open_.size()) < n) open_.resize(n);
    for (int64_t i = same; i < n; ++i) open_[i].push_back({word[i], 0});
    open_[n - 1].back().target |= 1;
    previous_.assign(word, word + n);
  }

  LexiconArrays finish() {
    close(0);
    LexiconArrays out;
    out.n_states = uint32_t(states_.size());
    out.first.assign(n_symbols_, 0);
    if (!open_.empty()) {
      for (const Edge& e : open_[0]) out.first[e.symbol] = e.target;
    }
    const uint64_t n_keys = uint64_t(out.n_states) * n_symbols_;
    if (n_keys >= kNoKey) throw std::length_error("the lexicon is too large: states times symbols must be below 2^32");
    std::vector<uint32_t> keys;
    for (size_t s = 1; s < states_.size(); ++s) {
      for (const Edge& e : states_[s]) keys.push_back(uint32_t(s) * n_symbols_ + e.symbol);
    }
    out.hash = build_perfect_hash(keys);
    out.target_bits = uint32_t(std::bit_width(2 * out.n_states - 1));
    out.bytes = (out.target_bits + uint32_t(std::bit_width(n_keys)) + 7) / 8;  // an empty edge has key 0, of state 0
    out.edges.assign(size_t(out.hash.size) * out.bytes + 8, 0);
    const PerfectHash hash = out.hash.view();
    for (size_t s = 1; s < states_.size(); ++s) {
      for (const Edge& e : states_[s]) {
        const uint32_t key = uint32_t(s) * n_symbols_ + e.symbol;
        const uint64_t edge = uint64_t(key) << out.target_bits | e.target;
        for (uint32_t b = 0; b < out.bytes; ++b) out.edges[size_t(hash(key)) * out.bytes + b] = uint8_t(edge >> 8 * b);
      }
    }
    out.prints = out.view().make_prints();
    return out;
  }

 private:
  struct Edge {
    uint16_t symbol;
    uint32_t target;
    bool operator==(const Edge&) const = default;
  };
  using State = std::vector<Edge>;

  // Gives numbers to the open states deeper than `depth`: equal states get the same one.
  void close(int64_t depth) {
    for (int64_t d = int64_t(previous_.size()); --d > depth;) {
      open_[d - 1].back().target |= number(std::move(open_[d])) << 1;
      open_[d].clear();
    }
  }

  uint32_t number(State&& state) {
    uint64_t h = state.size();
    for (const Edge& e : state) {
      h = (h ^ (uint64_t(e.target) << 16 | e.symbol)) * 0x9E3779B97F4A7C15u;
      h ^= h >> 29;
    }
    const auto [low, high] = known_.equal_range(h);
    for (auto it = low; it != high; ++it) {
      if (states_[it->second] == state) return it->second;
    }
    states_.push_back(std::move(state));
    known_.emplace(h, uint32_t(states_.size() - 1));
    return uint32_t(states_.size() - 1);
  }

  uint32_t n_symbols_;
  std::vector<uint16_t> previous_;
  std::vector<State> open_;  // open_[d]: the state before symbol d of the last word
  std::vector<State> states_{State{}};
  std::unordered_multimap<uint64_t, uint32_t> known_;
};

// Calls visit(symbols, length) for all words, in ascending order.
template <class Visit>
void for_each_word(const Lexicon& lexicon, Visit visit) {
  std::vector<std::pair<uint32_t, uint32_t>> edges;  // (key, target)
  for (uint32_t slot = 0; slot < lexicon.hash.size; ++slot) {
    const uint64_t edge = lexicon.edge(slot);
    const uint32_t key = uint32_t(edge >> lexicon.target_bits);
    if (key) edges.emplace_back(key, uint32_t(edge) & ((1u << lexicon.target_bits) - 1));
  }
  std::sort(edges.begin(), edges.end());
  std::vector<uint16_t> word;
  const auto descend = [&](auto&& self, uint32_t t) -> void {
    if (t & 1) visit(word.data(), int64_t(word.size()));
    const uint32_t begin = (t >> 1) * lexicon.n_symbols;
    if (t < 2) return;
    auto it = std::lower_bound(edges.begin(), edges.end(), std::pair{begin, 0u});
    for (; it != edges.end() && it->first - begin < lexicon.n_symbols; ++it) {
      word.push_back(uint16_t(it->first - begin));
      self(self, it->second);
      word.pop_back();
    }
  };
  for (uint32_t s = 0; s < lexicon.n_symbols; ++s) {
    word.assign(1, uint16_t(s));
    descend(descend, lexicon.first[s]);
  }
}

struct MarkScratch {
  std::vector<uint32_t> at, state, key, slot, found;
  std::vector<uint8_t> begins, ends, insides;  // of position i at [i + 1], between two zeros

  void reserve(int64_t n) {
    if (int64_t(at.size()) < n + 16) {
      for (auto* v : {&at, &state, &key, &slot, &found}) v->resize(n + 16);
      for (auto* v : {&begins, &ends, &insides}) v->resize(n + 16);
    }
    for (auto* v : {&begins, &ends, &insides}) std::memset(v->data(), 0, n + 3);
  }
};

// begins, ends, insides of w, for n symbols after which kLongestMark - 1 more can be read that belong to no word.
// All starts walk one step together, so that no branch depends on the text and the probes overlap.
inline void find_marks(const Lexicon& lexicon, const uint16_t* symbols, int64_t n, MarkScratch& w) {
  w.reserve(n);
  uint32_t* __restrict at = w.at.data();
  uint32_t* __restrict state = w.state.data();
  uint32_t* __restrict key = w.key.data();
  uint32_t* __restrict slot = w.slot.data();
  uint32_t* __restrict found = w.found.data();
  uint8_t* __restrict begins = w.begins.data() + 1;
  uint8_t* __restrict ends = w.ends.data() + 1;
  uint8_t* __restrict insides = w.insides.data() + 1;
  int64_t walkers = n;
  for (int length = 2; length <= kLongestMark && walkers; ++length) {
    int64_t likely = 0, hits = 0, left = 0;
    const auto look = [&](uint32_t p, uint32_t s) {
      const uint32_t x = s * lexicon.n_symbols + symbols[p + length - 1];
      const uint64_t h = PerfectHash::mix(x, lexicon.hash.seed);
      const uint32_t place = lexicon.hash.slot_of(h);
      at[likely] = p;
      key[likely] = x;
      slot[likely] = place;
      likely += lexicon.prints[place] == PerfectHash::print(h);
    };
    if (length == 2) {
      for (int64_t p = 0; p < n; ++p) look(uint32_t(p), lexicon.first[symbols[p]] >> 1);
    } else {
      for (int64_t k = 0; k < walkers; ++k) look(at[k], state[k]);
    }
    for (int64_t k = 0; k < likely; ++k) {
      const uint32_t t = lexicon.target(slot[k], key[k]);
      found[hits] = at[k];
      hits += t & 1;
      at[left] = at[k];
      state[left] = t >> 1;
      left += t > 1;
    }
    walkers = left;
    const uint8_t mark = mark_of_length(length);
    for (int64_t k = 0; k < hits; ++k) {
      const uint32_t p = found[k];
      begins[p] = ends[p + length - 1] = mark;
      for (int i = 1; i < length - 1; ++i) insides[p + i] = mark;
    }
  }
}

// m = 25 b + 5 e + k of each of the symbols of one sentence.
inline void marks(const Lexicon& lexicon, const uint16_t* symbols, int64_t n, uint8_t* m) {
  std::vector<uint16_t> padded(symbols, symbols + n);
  padded.resize(n + kLongestMark, kAfter);
  MarkScratch w;
  find_marks(lexicon, padded.data(), n, w);
  for (int64_t i = 0; i < n; ++i) m[i] = uint8_t(25 * w.begins[i + 1] + 5 * w.ends[i + 1] + w.insides[i + 1]);
}

}  // namespace cws
