#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "lattice.h"
#include "model.h"
#include "ngram.h"
#include "rules.h"
#include "text.h"
#include "unicode.h"
#include "viterbi.h"
#include "words.h"

// Text to tokens, block by block.
namespace cws {

enum class Unit { kCharacter, kByte, kUtf16 };
enum class Granularity : uint32_t { kCoarse, kFine, kSearch };

inline constexpr int kGateSymbols = 4096;

// What a call sees from its beginning to its end.
struct Settings {
  uint32_t rules = kAllRules;
  Granularity granularity = Granularity::kCoarse;
  std::shared_ptr<const Words> words;  // or none
};

// Tokens in units of their row; row r has those before row_ends[r].
struct Spans {
  std::vector<int32_t> starts, ends;
  std::vector<int64_t> row_ends;
};

// A model with the domain that was asked for: one mixture, or for each line what the gate says.
class Engine {
 public:
  // No weights: "auto".
  Engine(std::shared_ptr<const Model> model, bool gated, std::vector<double> weights)
      : model_(std::move(model)), gated_(gated && model_->gate()), mixtures_(model_->n_domains() + 1) {
    fixed_ = std::make_unique<Mixture>(*model_, weights);
  }

  const Model& model() const { return *model_; }
  bool gated() const { return gated_; }

  // Tables of domain k (0: general); made when they are first needed.
  const Tables& tables(int k) const {
    if (k == 0) return fixed_->tables();
    const Mixture* there = ready_[k].load(std::memory_order_acquire);
    if (there) return there->tables();
    const std::lock_guard lock(mutex_);
    if (!mixtures_[k]) {
      std::vector<double> weights(model_->n_domains(), 0);
      weights[k - 1] = 1;
      mixtures_[k] = std::make_unique<Mixture>(*model_, weights);
      ready_[k].store(mixtures_[k].get(), std::memory_order_release);
    }
    return mixtures_[k]->tables();
  }

  // Scores of domains, and the one to use (0: general).
  int choose(const int64_t* sums, int64_t n, std::vector<double>* probabilities = nullptr) const {
    const Gate& gate = *model_->gate();
    const int domains = model_->n_domains();
    std::array<double, 256> p;
    double top = -1e300, total = 0;
    for (int k = 0; k < domains; ++k) {
      p[k] = gate.bias[k] + double(sums[k]) / (gate.scale * double(std::max<int64_t>(1, n)));
      top = std::max(top, p[k]);
    }
    int best = 0;
    for (int k = 0; k < domains; ++k) {
      total += p[k] = std::exp(p[k] - top);
      if (p[k] > p[best]) best = k;
    }
    if (probabilities) {
      for (int k = 0; k < domains; ++k) probabilities->push_back(p[k] / total);
    }
    return domains && p[best] / total >= gate.threshold ? best + 1 : 0;
  }

 private:
  std::shared_ptr<const Model> model_;
  bool gated_;
  std::unique_ptr<Mixture> fixed_;
  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<Mixture>> mixtures_;
  mutable std::array<std::atomic<const Mixture*>, 256> ready_{};
};

// Where reading a text stands.
struct Cursor {
  const void* text = nullptr;  // UTF-8 or UCS-4
  int64_t size = 0;            // in bytes or code points
  int64_t at = 0;
  int64_t units = 0;  // since the row began
};

struct BadUtf8 : std::invalid_argument {
  explicit BadUtf8(int64_t at) : std::invalid_argument("invalid UTF-8"), at(at) {}
  int64_t at;
};
struct BadSurrogate : std::invalid_argument {
  explicit BadSurrogate(int64_t at) : std::invalid_argument("lone surrogate"), at(at) {}
  int64_t at;
};
struct TooLong : std::length_error {
  TooLong() : std::length_error("too long") {}
};

// The sentences of some lines, each with two positions before and two after it, and what is known of each position.
class Block {
 public:
  static constexpr int64_t kFull = 4096;
  static constexpr int kPad = 8;  // what can be read before the first and after the last position

  struct Sentence {
    int64_t begin, end;
  };

  explicit Block(const Engine& engine) : engine_(engine), model_(engine.model()) {
    reserve(kFull);
    reset();
  }

  // Before a text; also after an exception.
  void reset() {
    in_line_ = false;
    clear();
  }

  std::vector<uint32_t> points;  // room for the code points of a text

  int64_t capacity() const { return int64_t(text_.size()); }
  const std::vector<Sentence>& sentences() const { return sentences_; }
  int64_t size() const { return size_; }
  const uint32_t* text() const { return text_.data() + kPad; }
  const uint16_t* symbols() const { return symbols_.data() + kPad; }
  const int32_t* offsets() const { return offsets_.data() + kPad; }
  const int16_t* emission() const { return emission_.data() + 4 * kPad; }
  const uint8_t* mask() const { return mask_.data() + kPad; }
  const uint8_t* tags() const { return tags_.data() + kPad; }
  Rows rows() const {
    Rows r{symbols(), bigram_.data() + kPad, skip_.data() + kPad, {}, {}};
    for (int k = 0; k < kMostLexicons; ++k) {
      r.joint[k] = joint_[k].data() + kPad;
      r.charmark[k] = charmark_[k].data() + kPad;
    }
    return r;
  }
  int domain_of(int64_t sentence) const {
    const auto line = std::upper_bound(lines_.begin(), lines_.end(), sentence) - lines_.begin();
    return domains_[line];
  }

  void clear() {
    size_ = 0;
    sentences_.clear();
    lines_.clear();
    rows_.clear();
    line_symbols_ = 0;
    carried_ = in_line_ ? domains_.back() : -1;
  }

  // Emissions, masks, tags, tokens.
  void segment(const Settings& settings, Spans& out) {
    score(settings);
    decode(settings);
    write(settings.granularity, out);
  }

  // Reads on. True when the block is full, false when the text has ended. `all`: it is never full.
  // LINES: each line is a row.
  template <Unit U, bool UTF8, bool LINES>
  bool read(Cursor& c, bool all = false) {
    const ClassMap& classes = ClassMap::get();
    const uint8_t* class_plane = classes.plane();
    const uint16_t* symbol_plane = model_.symbols().plane;
    const uint8_t* bytes = static_cast<const uint8_t*>(c.text);
    const uint32_t* points = static_cast<const uint32_t*>(c.text);
    int64_t at = c.at, units = c.units;
    const int64_t size = c.size;
    uint32_t x = 0;
    int64_t next = at;
    const auto decode = [&] {
      if constexpr (UTF8) {
        next = at;
        if (!decode_utf8(bytes, size, next, x)) throw BadUtf8(at);
      } else {
        x = points[at];
        next = at + 1;
      }
    };
    const auto advance = [&] {
      if constexpr (U == Unit::kCharacter) ++units;
      if constexpr (U == Unit::kByte) {
        if constexpr (UTF8) {
          units += next - at;
        } else {
          if (is_surrogate(x)) throw BadSurrogate(at);
          units += utf8_length(x);
        }
      }
      if constexpr (U == Unit::kUtf16) units += utf16_length(x);
      at = next;
    };
    for (;;) {
      if (units > INT32_MAX) throw TooLong();
      bool ended = false;
      while (at < size) {
        decode();
        if (!is_space(x)) break;
        advance();
        if (x != '\n') continue;
        ended = true;
        end_line();
        if constexpr (LINES) {
          end_row();
          units = 0;
        }
        if (size_ >= kFull && !all) break;
      }
      if (size_ >= kFull && !all && (ended || line_symbols_ >= kGateSymbols || (carried_ >= 0 && lines_.empty()))) {
        c.at = at;
        c.units = units;
        in_line_ = !ended;
        return true;
      }
      if (at >= size) break;
      reserve(size_ + kFull);
      edge(kBefore);
      const int64_t begin = size_;
      for (bool open = true; open;) {
        const int64_t stop = int64_t(text_.size()) - 4 * kPad;
        uint32_t* __restrict text = text_.data() + kPad;
        int32_t* __restrict offsets = offsets_.data() + kPad;
        uint16_t* __restrict symbols = symbols_.data() + kPad;
        uint8_t* __restrict classes_of = classes_.data() + kPad;
        int64_t n = size_;
        for (; n < stop; ++n) {
          if (at >= size) {
            open = false;
            break;
          }
          decode();
          const uint8_t cls = x < 0x10000 ? class_plane[x] : classes.beyond(x);
          if (cls == kSpace) {
            open = false;
            break;
          }
          text[n] = x;
          offsets[n] = int32_t(units);
          classes_of[n] = cls;
          symbols[n] = x < 0x10000 ? symbol_plane[x] : model_.symbols().beyond(x);
          advance();
        }
        size_ = n;
        if (units > INT32_MAX) throw TooLong();
        if (open) reserve(2 * size_);
      }
      sentences_.push_back({begin, size_});
      line_symbols_ += size_ - begin;
      offsets_[kPad + size_] = int32_t(units);
      edge(kAfter);
    }
    c.at = at;
    c.units = units;
    in_line_ = false;
    return false;
  }

  void end_line() {
    lines_.push_back(int64_t(sentences_.size()));
    line_symbols_ = 0;
  }
  void end_row() { rows_.push_back(int64_t(sentences_.size())); }

  // Emissions and masks of all sentences. The last line may go on in the next block.
  void score(const Settings& settings) {
    const int64_t n = size_;
    const uint16_t* s = symbols();
    for (int i = -kPad; i < 0; ++i) symbols_[kPad + i] = kBefore;
    for (int i = 0; i < kPad; ++i) symbols_[kPad + n + i] = kAfter;
    find_pairs(model_.bigram(), s - 2, n + 5, bigram_.data() + kPad - 2);
    if (model_.general().skip) find_skips(model_.skip(), s, n + 1, skip_.data() + kPad);
    for (int k = 0; k < model_.n_lexicons(); ++k) {
      find_marks(model_.lexicon(k), s, n, marks_);
      find_mark_rows(model_.charmark(k), s, marks_.begins.data() + 1, marks_.ends.data() + 1, marks_.insides.data() + 1,
                     n + 1, joint_[k].data() + kPad, charmark_[k].data() + kPad);
    }
    marks_.reserve(n);
    choose_domains();
    const Rows all = rows();
    for (size_t line = 0, k = 0; k < sentences_.size();) {
      while (lines_[line] <= int64_t(k)) ++line;
      const int domain = domains_[line];
      size_t last = size_t(lines_[line]);
      while (line + 1 < lines_.size() && (domains_[line + 1] == domain || lines_[line + 1] == lines_[line])) {
        last = size_t(lines_[++line]);
      }
      const int64_t begin = sentences_[k].begin, end = sentences_[last - 1].end;
      Rows part = all;
      part.symbols += begin;
      part.bigram += begin;
      part.skip += begin;
      for (int l = 0; l < kMostLexicons; ++l) {
        part.joint[l] += begin;
        part.charmark[l] += begin;
      }
      const Tables& tables = engine_.tables(domain);
      int16_t* emission = emission_.data() + 4 * (kPad + begin);
      emit(model_.n_lexicons(), tables, part, end - begin, emission);
      if (tables.delta.bits) emit_delta(tables.delta, part.bigram, end - begin, emission, marks_.at.data());
      k = last;
    }
    settle(settings.rules);
  }

  // Masks of all sentences.
  void settle(uint32_t rules) {
    uint8_t* mask = mask_.data() + kPad;
    std::fill(mask, mask + size_, uint8_t(kFree));
    for (const Sentence& t : sentences_) {
      rules_.apply(text(), classes_.data() + kPad, t.begin, t.end, rules, mask);
    }
  }

  // The soft matches of a sentence; forced ones become masks.
  const std::vector<Match>& find_words(const Words& words, const Sentence& t) {
    matches_.clear();
    words.find(text(), t.begin, t.end, matches_);
    uint8_t* mask = mask_.data() + kPad;
    const auto possible = [&](const Match& m) {
      const auto joint = [&](int64_t i) { return mask[i] == kJoint || mask[i] == kInside; };
      if (joint(m.begin) || (m.end < t.end && joint(m.end))) return false;
      return std::none_of(mask + m.begin + 1, mask + m.end, [](uint8_t x) { return x == kStart; });
    };
    int64_t from = t.begin;
    for (size_t k = 0; k < matches_.size();) {
      const int64_t begin = matches_[k].begin;
      int64_t longest = -1;
      for (; k < matches_.size() && matches_[k].begin == begin; ++k) {
        if (matches_[k].cost == kForce && begin >= from && possible(matches_[k])) longest = matches_[k].end;
      }
      if (longest < 0) continue;
      mask[begin] = kStart;
      std::replace(mask + begin + 1, mask + longest, uint8_t(kFree), uint8_t(kInside));
      if (longest < t.end) mask[longest] = kStart;
      from = longest;
    }
    std::erase_if(matches_, [&](const Match& m) { return m.cost == kForce || !possible(m); });
    return matches_;
  }

  void decode(const Settings& settings) {
    uint8_t* tags = tags_.data() + kPad;
    for (size_t k = 0; k < sentences_.size(); ++k) {
      const Sentence& t = sentences_[k];
      const int32_t* transition = engine_.tables(domain_of(int64_t(k))).transition;
      if (settings.words && !find_words(*settings.words, t).empty()) {
        for (Match& m : matches_) {
          m.begin -= t.begin;
          m.end -= t.begin;
        }
        std::vector<uint8_t> first(t.end - t.begin, 0);
        first[0] = 1;
        std::vector<double> emission(this->emission() + 4 * t.begin, this->emission() + 4 * t.end);
        const std::vector<uint8_t> mask(this->mask() + t.begin, this->mask() + t.end);
        std::vector<const int32_t*> transitions(first.size(), transition);
        Lattice(std::move(emission), mask, std::move(first), std::move(transitions), matches_, model_.scale())
            .best(tags + t.begin);
        continue;
      }
      viterbi(emission() + 4 * t.begin, mask() + t.begin, t.end - t.begin, transition,
              back_.data() + 4 * (kPad + t.begin), tags + t.begin);
    }
  }

  // Appends tokens and rows.
  void write(Granularity granularity, Spans& out) {
    const int32_t* offset = offsets();
    const uint8_t* tag = tags();
    size_t row = 0, count = out.starts.size();
    const auto room = [&](size_t n) {
      out.starts.resize(count + n);
      out.ends.resize(count + n);
    };
    if (granularity == Granularity::kCoarse) room(size_t(size_) + 1);
    for (size_t k = 0; k < sentences_.size(); ++k) {
      for (; row < rows_.size() && rows_[row] <= int64_t(k); ++row) out.row_ends.push_back(int64_t(count));
      const Sentence& t = sentences_[k];
      if (granularity != Granularity::kCoarse) {
        room(0);
        for (int64_t i = t.begin, j; i < t.end; i = j) {
          for (j = i + 1; j < t.end && (tag[j] == kM || tag[j] == kE);) ++j;
          granularity == Granularity::kFine ? write_fine(i, j, out) : write_search(i, j, out);
        }
        count = out.starts.size();
        continue;
      }
      int32_t* starts = out.starts.data() + count;
      int32_t* ends = out.ends.data() + count;
      *starts = offset[t.begin];
      size_t m = 0;
      for (int64_t i = t.begin + 1; i < t.end; ++i) {
        ends[m] = starts[m + 1] = offset[i];
        m += tag[i] == kB || tag[i] == kS;
      }
      ends[m] = offset[t.end];
      count += m + 1;
    }
    for (; row < rows_.size(); ++row) out.row_ends.push_back(int64_t(count));
    room(0);
  }

  // Emissions, masks and matches of all sentences together.
  Lattice lattice(const Settings& settings) {
    score(settings);
    std::vector<double> emission;
    std::vector<uint8_t> mask, first;
    std::vector<Match> matches;
    std::vector<const int32_t*> transitions;
    for (size_t k = 0; k < sentences_.size(); ++k) {
      const Sentence& t = sentences_[k];
      const int64_t shift = t.begin - int64_t(first.size());
      if (settings.words) {
        for (const Match& m : find_words(*settings.words, t))
          matches.push_back({m.begin - shift, m.end - shift, m.cost});
      }
      emission.insert(emission.end(), this->emission() + 4 * t.begin, this->emission() + 4 * t.end);
      mask.insert(mask.end(), this->mask() + t.begin, this->mask() + t.end);
      first.resize(mask.size(), 0);
      first[mask.size() - size_t(t.end - t.begin)] = 1;
      transitions.resize(mask.size(), engine_.tables(domain_of(int64_t(k))).transition);
    }
    return Lattice(std::move(emission), mask, std::move(first), std::move(transitions), matches, model_.scale());
  }

 private:
  void reserve(int64_t n) {
    const size_t wanted = size_t(n) + 6 * kPad;
    if (text_.size() >= wanted) return;
    for (auto* v : {&text_, &bigram_, &skip_, &charmark_[0], &charmark_[1]}) v->resize(wanted);
    for (auto* v : {&symbols_, &joint_[0], &joint_[1]}) v->resize(wanted);
    for (auto* v : {&classes_, &mask_, &tags_}) v->resize(wanted);
    offsets_.resize(wanted);
    emission_.resize(4 * wanted);
    back_.resize(4 * wanted);
  }

  // Two positions outside of a sentence.
  void edge(uint16_t symbol) {
    for (int i = 0; i < 2; ++i, ++size_) {
      text_[kPad + size_] = 0;
      classes_[kPad + size_] = kPlain;
      symbols_[kPad + size_] = symbol;
    }
    for (int i = 0; i < kPad; ++i) {
      text_[kPad + size_ + i] = 0;
      classes_[kPad + size_ + i] = kPlain;
    }
  }

  void choose_domains() {
    if (lines_.empty() || lines_.back() < int64_t(sentences_.size())) lines_.push_back(int64_t(sentences_.size()));
    domains_.assign(lines_.size(), 0);
    if (!engine_.gated()) return;
    const Gate& gate = *model_.gate();
    std::array<int64_t, 256> sums;
    int64_t first = 0;
    for (size_t line = 0; line < lines_.size(); ++line) {
      if (line == 0 && carried_ >= 0) {
        domains_[0] = carried_;
      } else {
        std::fill(sums.begin(), sums.end(), 0);
        int64_t n = 0;
        int32_t before = -1;
        for (int64_t k = first; k < lines_[line] && n < kGateSymbols; ++k) {
          const Sentence& t = sentences_[k];
          const int64_t part = std::min<int64_t>(t.end - t.begin, kGateSymbols - n);
          add_gate(gate, symbols() + t.begin, part, before, sums.data());
          before = symbols()[t.begin + part - 1];
          n += part;
        }
        domains_[line] = engine_.choose(sums.data(), n);
      }
      first = lines_[line];
    }
  }

  bool may_cut(int64_t i) const { return mask_[kPad + i] != kJoint; }

  bool is_word(int64_t begin, int64_t end) const {
    for (int k = 0; k < model_.n_lexicons(); ++k) {
      if (model_.lexicon(k).contains(symbols() + begin, end - begin)) return true;
    }
    return false;
  }

  void put(int64_t begin, int64_t end, Spans& out) const {
    out.starts.push_back(offsets()[begin]);
    out.ends.push_back(offsets()[end]);
  }

  // A token of 4 characters and more as dictionary words and at most one single character, if it can be: few pieces,
  // none of 4 characters and more if possible; of equals, the one whose first piece is the shortest.
  void write_fine(int64_t begin, int64_t end, Spans& out) {
    constexpr int64_t kWord = 1, kLongWord = 1 << 20, kSingle = 1 << 30, kNone = int64_t(1) << 40, kReach = 16;
    const int64_t n = end - begin;
    if (n < 4) return put(begin, end, out);
    costs_.assign(n + 1, kNone);
    pieces_.assign(n, 0);
    costs_[n] = 0;
    for (int64_t i = n - 1; i >= 0; --i) {
      if (i > 0 && !may_cut(begin + i)) continue;
      bool single = true;
      for (int64_t j = i + 1; j <= std::min(n, i + kReach) || single; ++j) {
        if (j < n && !may_cut(begin + j)) continue;
        if (i == 0 && j == n) break;
        int64_t cost = single ? kSingle : kNone;
        if (j - i >= 2 && is_word(begin + i, begin + j)) cost = j - i < 4 ? kWord : kLongWord;
        single = false;
        if (cost + costs_[j] < costs_[i]) {
          costs_[i] = cost + costs_[j];
          pieces_[i] = j;
        }
        if (j == n) break;
      }
    }
    if (costs_[0] >= 2 * kSingle) return put(begin, end, out);
    for (int64_t i = 0; i < n; i = pieces_[i]) put(begin + i, begin + pieces_[i], out);
  }

  // The dictionary's words of 2 and of 3 characters in a token, then the token.
  void write_search(int64_t begin, int64_t end, Spans& out) const {
    for (int64_t length = 2; length <= 3; ++length) {
      if (end - begin <= length) continue;
      for (int64_t i = begin; i + length <= end; ++i) {
        const bool edges = (i == begin || may_cut(i)) && (i + length == end || may_cut(i + length));
        if (edges && is_word(i, i + length)) put(i, i + length, out);
      }
    }
    put(begin, end, out);
  }

  const Engine& engine_;
  const Model& model_;
  int64_t size_ = 0;
  int64_t line_symbols_ = 0;  // of the line that is being read, in this block
  bool in_line_ = false;      // the block ended within a line
  int carried_ = -1;          // the domain of the first line, where it began in an earlier block
  std::vector<uint32_t> text_, bigram_, skip_, charmark_[kMostLexicons];
  std::vector<int32_t> offsets_;
  std::vector<uint16_t> symbols_, joint_[kMostLexicons];
  std::vector<uint8_t> classes_, mask_, tags_, back_;
  std::vector<int16_t> emission_;
  std::vector<Sentence> sentences_;
  std::vector<int64_t> lines_, rows_;  // sentences before the end of each
  std::vector<int> domains_;           // of lines
  MarkScratch marks_;
  Rules rules_;
  std::vector<Match> matches_;
  std::vector<int64_t> costs_, pieces_;
};

}  // namespace cws
