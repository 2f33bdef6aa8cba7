#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "draws.h"
#include "train.h"

// Sentences cut into pieces that a worker trains at a time.
namespace sgns {

inline constexpr uint32_t kUnit = 32;  // centres, a multiple of kLanes

// A sentence, or some centres of a long one with the words around them.
struct Unit {
  Kept kept;
  uint32_t first, last;    // centres
  uint64_t number, begin;  // of the sentence, its first token
};

template <class T, class S>
class Units {
 public:
  Units(const Training<T, S>& training, uint64_t first, uint64_t last) : t_(training), sentence_(first), last_(last) {}

  bool left() const { return sentence_ < last_; }
  // Does the next unit go on with a sentence?
  bool inside() const { return at_; }
  // With which the next unit begins.
  uint64_t token() const { return t_.offsets[sentence_] + (at_ ? long_.position[at_] : 0); }

  void next(Unit& unit) {
    const uint64_t begin = t_.offsets[sentence_], number = t_.first_sentence + sentence_;
    const uint32_t n = uint32_t(t_.offsets[sentence_ + 1] - begin);
    unit.number = number, unit.begin = begin, unit.first = 0;
    if (n <= kUnit) {
      t_.sampler.select(t_.ids + begin, n, number, unit.kept);
      unit.last = unit.kept.size();
      ++sentence_;
    } else {
      if (!at_) t_.sampler.select(t_.ids + begin, n, number, long_);
      cut(unit);
    }
  }

 private:
  void cut(Unit& unit) {
    const uint32_t last = std::min(long_.size(), at_ + kUnit), to = std::min(long_.size(), last + t_.sampler.window);
    const uint32_t from = at_ > t_.sampler.window ? (at_ - t_.sampler.window) / kLanes * kLanes : 0;
    const auto part = [&](const std::vector<uint32_t>& of, std::vector<uint32_t>& copy) {
      copy.assign(of.begin() + from, of.begin() + to);
    };
    part(long_.position, unit.kept.position), part(long_.word, unit.kept.word), part(long_.window, unit.kept.window);
    unit.first = at_ - from, unit.last = last - from;
    at_ = last;
    if (at_ == long_.size()) at_ = 0, ++sentence_;
  }

  const Training<T, S>& t_;
  uint64_t sentence_;
  const uint64_t last_;
  uint32_t at_ = 0;  // the next centre of a long sentence
  Kept long_;
};

}  // namespace sgns
