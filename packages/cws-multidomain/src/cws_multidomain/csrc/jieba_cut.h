#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "jieba_dictionary.h"
#include "text.h"

namespace jieba {

inline bool is_alphanumeric(uint32_t c) { return cws::is_digit(c) || cws::is_latin(c); }

// What jieba looks up in its dictionary; every other character is a token of its own.
inline bool is_covered(uint32_t c) {
  if (c - 0x4E00u <= 0x9FD5 - 0x4E00) return true;
  return is_alphanumeric(c) || c == '+' || c == '#' || c == '&' || c == '.' || c == '_' || c == '%' || c == '-';
}

using Text = std::vector<uint32_t>;

// Cuts texts by the most probable sequence of dictionary words, or into all words that a text holds.
class Cutter {
 public:
  explicit Cutter(const Dictionary& dictionary)
      : dictionary_(dictionary),
        log_total_(std::log(static_cast<double>(dictionary.total() > 0 ? dictionary.total() : 1))) {}

  // Call token(start, end) for each token of the most probable cut; joined they are the text.
  template <class Token>
  void cut(const uint32_t* text, size_t n, Token&& token) {
    size_t i = 0;
    while (i < n) {
      const size_t start = i;
      if (is_covered(text[i])) {
        while (i < n && is_covered(text[i])) ++i;
        best(text + start, i - start);
        walk(text, start, i, token);
      } else {
        i += text[i] == '\r' && i + 1 < n && text[i + 1] == '\n' ? 2 : 1;
        token(start, i);
      }
    }
  }

  // Call token(word) for each word anywhere in the text. Single letters and digits that follow each other are joined,
  // with what jieba finds between them left out, and around whitespace there are empty tokens, as in jieba.
  template <class Token>
  void cut_all(const uint32_t* text, size_t n, Token&& token) {
    size_t i = 0;
    while (i < n) {
      const size_t start = i;
      if (is_covered(text[i])) {
        while (i < n && is_covered(text[i])) ++i;
        all(text + start, i - start, token);
        continue;
      }
      size_t from = i;
      while (i < n && !is_covered(text[i])) {
        if (!cws::is_space(text[i])) {
          ++i;
          continue;
        }
        token(Text(text + from, text + i));
        from = i;
        i += text[i] == '\r' && i + 1 < n && text[i + 1] == '\n' ? 2 : 1;
        token(Text(text + from, text + i));
        from = i;
      }
      token(Text(text + from, text + i));
    }
  }

 private:
  // The best cut from each position on: its log-probability and the end of its first word. Of equals the longest wins.
  void best(const uint32_t* text, size_t n) {
    if (scores_.size() <= n) {
      scores_.resize(n + 1);
      ends_.resize(n + 1);
    }
    scores_[n] = 0;
    for (size_t i = n; i-- > 0;) {
      if (i >= kAhead) dictionary_.prefetch(text[i - kAhead], text[i - kAhead + 1]);
      double score = -std::numeric_limits<double>::infinity();
      size_t end = i + 1;
      Edge edge = dictionary_.step(kNone, text[i]);
      for (size_t j = i + 1; edge.child != kNone; ++j) {
        if (edge.level != 0) {
          const double through = dictionary_.log_count(edge) - log_total_ + scores_[j];
          if (through >= score) {
            score = through;
            end = j;
          }
        }
        if (j == n) break;
        edge = dictionary_.step(edge.child, text[j]);
      }
      const bool found = score > -std::numeric_limits<double>::infinity();
      scores_[i] = found ? score : 0 - log_total_ + scores_[i + 1];
      ends_[i] = end;
    }
  }

  // Single letters and digits that follow each other become one token.
  template <class Token>
  void walk(const uint32_t* text, size_t start, size_t end, Token&& token) {
    size_t run = start;
    for (size_t i = start; i < end;) {
      const size_t next = start + ends_[i - start];
      if (next > i + 1 || !is_alphanumeric(text[i])) {
        if (run < i) token(run, i);
        token(i, next);
        run = next;
      }
      i = next;
    }
    if (run < end) token(run, end);
  }

  template <class Token>
  void all(const uint32_t* text, size_t n, Token&& token) {
    Text run;
    bool in_run = false;
    size_t covered = 0;  // the end of the last token
    std::vector<size_t> ends;
    for (size_t i = 0; i < n; ++i) {
      ends.clear();
      Edge edge = dictionary_.step(kNone, text[i]);
      for (size_t j = i + 1; edge.child != kNone; ++j) {
        if (edge.level != 0) ends.push_back(j);
        if (j == n) break;
        edge = dictionary_.step(edge.child, text[j]);
      }
      if (ends.empty()) ends.push_back(i + 1);
      if (in_run && !is_alphanumeric(text[i])) {
        in_run = false;
        token(run);
      }
      if (ends.size() == 1 && i >= covered) {
        covered = ends[0];
        if (is_alphanumeric(text[i])) {
          if (!in_run) run.clear();
          in_run = true;
          run.insert(run.end(), text + i, text + covered);
        } else {
          token(Text(text + i, text + covered));
        }
      } else {
        for (const size_t end : ends) {
          if (end == i + 1) continue;
          token(Text(text + i, text + end));
          covered = end;
        }
      }
    }
    if (in_run) token(run);
  }

  static constexpr size_t kAhead = 8;
  const Dictionary& dictionary_;
  const double log_total_;
  std::vector<double> scores_;
  std::vector<size_t> ends_;
};

// jieba's rule for search engines: the words of two and of three characters inside a longer word, then the word itself.
template <class Token>
void search(const Dictionary& dictionary, const uint32_t* word, size_t n, Token&& token) {
  for (const size_t length : {size_t{2}, size_t{3}}) {
    for (size_t i = 0; n > length && i + length <= n; ++i) {
      if (dictionary.find(word + i, length).level != 0) token(i, i + length);
    }
  }
  token(0, n);
}

}  // namespace jieba
