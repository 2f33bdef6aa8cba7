#pragma once

#include <cstdint>
#include <string_view>
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
  // After the last word.
  void link() { trie_.link(); }
  uint32_t size() const { return size_; }

  // Cuts text[0..n) at the longest words from the left. The reference forgets to step back when a longer word fails, so
  // that its piece takes in the characters tried; `fixes` steps back.
  void solve(const char32_t* text, int64_t n, bool fixes, std::vector<Piece>& pieces) const {
    pieces.clear();
    int64_t last = 0;
    for (int64_t i = 0; i < n;) {
      uint32_t link = Trie::kRoot, word = 0;
      int64_t j = i, end = i;
      while (j < n && (link = trie_.next(link, text[j]))) {
        ++j;
        if (link & Trie::kWord) {
          word = trie_.word(link);
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
    if (!word.empty()) trie_.insert(word, 1);
    ++size_;
  }
  // After the last word.
  void link() { trie_.link(); }
  size_t size() const { return size_; }

  // Merges runs of 7 to 2 tokens that spell a word, unless each of them is a word itself. `ends` holds the ends of the
  // tokens of one text, from index `from` on; the first starts at `start`.
  void merge(const char32_t* text, int64_t start, std::vector<int64_t>& ends, size_t from,
             std::vector<uint64_t>& lengths) const {
    if (ends.size() - from < 2) return;
    const int64_t n = ends.back();
    lengths.resize(n - start);  // of the words at each token's start, a bit each
    for (size_t i = from; i < ends.size(); ++i) {
      const int64_t begin = i == from ? start : ends[i - 1];
      uint64_t bits = 0;
      uint32_t link = trie_.next(Trie::kRoot, text[begin]);
      for (int64_t j = begin; link && j - begin < 63;) {
        if (link & Trie::kWord) bits |= uint64_t{1} << (j + 1 - begin);
        if (++j == n) break;
        link = trie_.next(link, text[j]);
      }
      lengths[begin - start] = bits;
    }
    const auto has = [&](int64_t begin, int64_t end) {
      if (end - begin < 64) return (lengths[begin - start] >> (end - begin) & 1) != 0;
      uint32_t link = Trie::kRoot;
      for (int64_t j = begin; j < end && link; ++j) link = trie_.next(link, text[j]);
      return (link & Trie::kWord) != 0;
    };
    for (size_t m = 7; m >= 2; --m) {
      if (ends.size() - from < m) continue;
      size_t out = from;
      int64_t begin = start;
      for (size_t i = from; i < ends.size();) {
        if (i + m <= ends.size() && has(begin, ends[i + m - 1])) {
          bool all = has(begin, ends[i]);
          for (size_t k = i + 1; all && k < i + m; ++k) all = has(ends[k - 1], ends[k]);
          if (!all) i += m - 1;
        }
        begin = ends[out++] = ends[i++];
      }
      ends.resize(out);
    }
  }

 private:
  Trie trie_;
  size_t size_ = 0;
};

}  // namespace pkuseg
