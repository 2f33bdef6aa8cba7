#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "pkuseg_table.h"

// pkuseg's two uses of dictionaries: words forced before the model runs, words merged after it.
namespace pkuseg {

class UserWords {
 public:
  struct Piece {
    int64_t start, end;
    uint32_t word;  // 0: not a word
  };

  void add(std::u32string_view word) {
    if (!word.empty()) trie_.insert(word, ++size_);
  }
  uint32_t size() const { return size_; }

  // Cuts text[0..n) at the longest words from the left. The reference forgets to step back when a longer word fails, so
  // that its piece takes in the characters tried; `fixes` steps back.
  void solve(const char32_t* text, int64_t n, bool fixes, std::vector<Piece>& pieces) const {
    pieces.clear();
    int64_t last = 0;
    for (int64_t i = 0; i < n;) {
      uint32_t state = 1, word = 0;
      int64_t j = i, end = i;
      while (j < n && (state = trie_.next(state, text[j]))) {
        ++j;
        if (trie_[state].word) {
          word = trie_[state].word;
          end = j;
        }
      }
      if (!word) {
        ++i;
        continue;
      }
      if (!fixes && j < n) end = j;
      if (last != i) pieces.push_back({last, i, 0});
      pieces.push_back({i, end, word});
      last = i = end;
    }
    if (last < n) pieces.push_back({last, n, 0});
  }

 private:
  Trie trie_;
  uint32_t size_ = 0;
};

class MergedWords {
 public:
  void add(std::u32string_view word) {
    words_.emplace(word);
    longest_ = std::max(longest_, word.size());
  }
  size_t size() const { return words_.size(); }

  // Merges runs of 7 to 2 tokens that spell a word, unless each of them is a word itself. `ends` holds the ends of the
  // tokens of one text, from index `from` on; the first starts at `start`.
  void merge(const char32_t* text, int64_t start, std::vector<int64_t>& ends, size_t from) const {
    for (size_t m = 7; m >= 2; --m) {
      if (ends.size() - from < m) continue;
      size_t out = from;
      int64_t begin = start;
      for (size_t i = from; i < ends.size();) {
        if (i + m <= ends.size() && merges(text, begin, &ends[i], m)) i += m - 1;
        begin = ends[out++] = ends[i++];
      }
      ends.resize(out);
    }
  }

 private:
  bool has(const char32_t* text, int64_t start, int64_t end) const {
    const std::u32string_view word(text + start, end - start);
    return word.size() <= longest_ && words_.contains(word);
  }
  bool merges(const char32_t* text, int64_t start, const int64_t* ends, size_t m) const {
    if (!has(text, start, ends[m - 1])) return false;
    for (size_t k = 0; k < m; ++k)
      if (!has(text, k ? ends[k - 1] : start, ends[k])) return true;
    return false;
  }

  std::unordered_set<std::u32string, TextHash, std::equal_to<>> words_;
  size_t longest_ = 0;
};

}  // namespace pkuseg
