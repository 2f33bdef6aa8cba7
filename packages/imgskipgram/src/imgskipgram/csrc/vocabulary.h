#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

// Words -> numbers in the order in which they come.
class Lexicon {
 public:
  static constexpr uint32_t kNone = ~uint32_t{0};

  uint32_t find(std::string_view word) const { return slots_[place(word, key_of(word))].id; }

  uint32_t add(std::string_view word) {
    const Key key = key_of(word);
    Slot& slot = slots_[place(word, key)];
    if (slot.id != kNone) return slot.id;
    if (size() == kNone) throw std::length_error("a corpus may have 4,294,967,295 different words");
    const auto id = static_cast<uint32_t>(size());
    slot = {key, id};
    text_.append(word);
    starts_.push_back(text_.size());
    if (2 * size() > slots_.size()) grow();
    return id;
  }

  size_t size() const { return starts_.size() - 1; }

  std::string_view operator[](size_t id) const {
    return std::string_view(text_).substr(starts_[id], starts_[id + 1] - starts_[id]);
  }

 private:
  static constexpr size_t kShort = 16;

  // A word of up to kShort bytes whole (its ends, which overlap): most are found without a look at their text.
  struct Key {
    uint64_t begin = 0, end = 0;
    uint32_t length = 0;

    bool operator==(const Key&) const = default;
    uint64_t hash() const { return mix(begin ^ kFirst, end ^ length * kThird ^ kSecond); }
  };

  struct Slot {
    Key key;
    uint32_t id = kNone;
  };

  static constexpr uint64_t kFirst = 0x9e3779b97f4a7c15, kSecond = 0xd1b54a32d192ed03, kThird = 0x8cb92ba72f3d8dd7;

  template <class T>
  static uint64_t load(const char* p) {
    T value;
    std::memcpy(&value, p, sizeof value);
    return value;
  }

  static uint64_t mix(uint64_t a, uint64_t b) {
    const auto product = static_cast<unsigned __int128>(a) * b;
    return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
  }

  static Key key_of(std::string_view word) {
    const char* p = word.data();
    const size_t n = word.size();
    const auto length = static_cast<uint32_t>(std::min<size_t>(n, UINT32_MAX));
    if (n > kShort) {
      uint64_t h = kThird;
      for (size_t i = 0; i + 8 < n; i += 8) h = mix(h ^ load<uint64_t>(p + i), kSecond);
      return {h, load<uint64_t>(p + n - 8), length};
    }
    if (n >= 8) return {load<uint64_t>(p), load<uint64_t>(p + n - 8), length};
    if (n >= 4) return {load<uint32_t>(p), load<uint32_t>(p + n - 4), length};
    if (n == 0) return {};
    return {load<uint8_t>(p) | load<uint8_t>(p + n / 2) << 8 | load<uint8_t>(p + n - 1) << 16, 0, length};
  }

  size_t place(std::string_view word, const Key& key) const {
    const size_t mask = slots_.size() - 1;
    size_t i = key.hash() & mask;
    for (;; i = (i + 1) & mask) {
      const Slot& slot = slots_[i];
      if (slot.id == kNone) return i;
      if (slot.key == key && (word.size() <= kShort || (*this)[slot.id] == word)) return i;
    }
  }

  void grow() {
    std::vector<Slot> old(2 * slots_.size());
    old.swap(slots_);
    const size_t mask = slots_.size() - 1;
    for (const Slot& slot : old) {
      if (slot.id == kNone) continue;
      size_t i = slot.key.hash() & mask;
      while (slots_[i].id != kNone) i = (i + 1) & mask;
      slots_[i] = slot;
    }
  }

  std::vector<Slot> slots_ = std::vector<Slot>(1 << 12);
  std::string text_;
  std::vector<uint64_t> starts_{0};
};

// Whether a word with this count stays where words below `least` go.
using Rule = std::function<bool(std::string_view word, uint64_t count, uint64_t least)>;

// Sentences -> numbers of words. Without a vocabulary it learns and counts one: whenever a sentence ends with more
// than `limit` words counted, those below a threshold that rises by one are forgotten (their number stays, their count
// starts again). With a vocabulary other words are left out.
class Encoder {
 public:
  explicit Encoder(uint64_t limit, Rule rule) : limit_(limit), rule_(std::move(rule)) {}

  explicit Encoder(const std::vector<std::string_view>& words) : fixed_(true) {
    for (std::string_view word : words) lexicon_.add(word);
  }

  void word(std::string_view word) {
    ++raw_;
    ++length_;
    if (fixed_) {
      const uint32_t id = lexicon_.find(word);
      if (id != Lexicon::kNone) ids_.push_back(id);
      return;
    }
    const uint32_t id = lexicon_.add(word);
    if (id == counts_.size()) {
      counts_.push_back(0);
      births_.push_back(0);
    }
    if (counts_[id]++ == 0) {
      births_[id] = born_++;
      ++alive_;
    }
    ids_.push_back(id);
  }

  // Ends a line of a file; one without words is no sentence.
  void end() {
    if (length_ != 0) end_sentence();
  }

  void end_sentence() {
    length_ = 0;
    ends_.push_back(taken_ + ids_.size());
    if (limit_ != 0 && alive_ > limit_) forget(least_++);
  }

  // The numbers since the last call, and where sentences ended, counted in numbers from the beginning of the corpus.
  std::pair<std::vector<uint32_t>, std::vector<uint64_t>> take() {
    taken_ += ids_.size();
    std::pair taken(std::move(ids_), std::move(ends_));
    ids_ = {};
    ends_ = {};
    ids_.reserve(taken.first.size());  // the next block has about as many
    return taken;
  }

  const Lexicon& lexicon() const { return lexicon_; }
  const std::vector<uint64_t>& counts() const { return counts_; }
  const std::vector<uint64_t>& births() const { return births_; }  // the order in which words were first counted
  uint64_t raw() const { return raw_; }

 private:
  void forget(uint64_t least) {
    for (size_t id = 0; id < counts_.size(); ++id) {
      if (counts_[id] == 0) continue;
      if (rule_ ? rule_(lexicon_[id], counts_[id], least) : counts_[id] >= least) continue;
      counts_[id] = 0;
      --alive_;
    }
  }

  Lexicon lexicon_;
  std::vector<uint64_t> counts_, births_;
  std::vector<uint32_t> ids_;
  std::vector<uint64_t> ends_;
  uint64_t raw_ = 0, length_ = 0, taken_ = 0, born_ = 0, alive_ = 0, least_ = 1, limit_ = 0;
  bool fixed_ = false;
  Rule rule_;
};

// Numbers and ends of sentences under new numbers, in place; words without one are left out. Returns how many are left.
inline uint64_t renumber(uint32_t* ids, uint64_t* ends, size_t sentences, const uint32_t* numbers) {
  uint64_t from = 0, to = 0;
  for (size_t s = 0; s < sentences; ++s) {
    for (; from < ends[s]; ++from) {
      const uint32_t id = numbers[ids[from]];
      ids[to] = id;
      to += id != Lexicon::kNone;
    }
    ends[s] = to;
  }
  return to;
}
