#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <numeric>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "pkuseg_files.h"
#include "pkuseg_names.h"
#include "simd.h"

// Training of pkuseg's model: features numbered as the reference numbers them, the chain's gradient, and ADF.
namespace pkuseg {

inline constexpr int kTags = 5;
inline constexpr std::array<std::string_view, kTags> kTagNames = {"B", "B_single", "I", "I_end", "I_first"};

// The features of a corpus. Text: a sentence per line, words between white space.
class Corpus {
 public:
  Corpus(std::u32string_view text, const Names* init) {
    if (init) adopt(*init);
    read(text);
    extract();
  }

  int64_t sentences() const { return static_cast<int64_t>(splits_.size()) - 1; }
  int64_t characters() const { return static_cast<int64_t>(tags_.size()); }
  int64_t features() const { return static_cast<int64_t>(names_.size() + order_.size()); }
  // Sentence k is positions splits()[k] to splits()[k + 1]; position i has ids()[row_splits()[i]] and so on.
  const std::vector<int64_t>& splits() const { return splits_; }
  const std::vector<int64_t>& row_splits() const { return row_splits_; }
  const std::vector<uint32_t>& ids() const { return ids_; }
  const std::vector<uint8_t>& tags() const { return tags_; }

  // The vocabulary as features.msgpack of spacy-pkuseg holds it.
  std::string pack() const {
    std::vector<std::string> words(1);
    for (const auto& [word, number] : numbers_) {
      if (words.size() <= number) words.resize(number + 1);
      words[number] = word;
    }
    std::set<std::string, std::less<>> unigram(words.begin() + 1, words.end()),
        bigram(bigrams_.begin(), bigrams_.end());
    pairs_.each([&](const Table::Slot& s) { bigram.insert(words[s.key >> 32] + "*" + words[s.key & 0xFFFFFFFF]); });
    std::string out;
    MessagePack::map(4, out);
    const auto strings = [&](std::string_view key, const auto& set) {
      MessagePack::write(key, out);
      MessagePack::list(set.size(), out);
      for (const std::string& s : set) MessagePack::write(std::string_view(s), out);
    };
    strings("unigram", unigram);
    strings("bigram", bigram);
    MessagePack::write(std::string_view("feature_to_idx"), out);
    MessagePack::map(features(), out);
    uint64_t index = 0;
    for (const std::string& name : names_) {
      MessagePack::write(std::string_view(name), out);
      MessagePack::write(index++, out);
    }
    std::vector<std::string> spelt(words_.size() + 1);
    words_.each([&](std::string_view word, uint32_t number) { spelt[number] = word; });
    for (uint64_t key : order_) {
      MessagePack::write(std::string_view(spell(key, spelt)), out);
      MessagePack::write(index++, out);
    }
    MessagePack::write(std::string_view("tag_to_idx"), out);
    MessagePack::map(kTags, out);
    for (int y = 0; y < kTags; ++y) {
      MessagePack::write(kTagNames[y], out);
      MessagePack::write(static_cast<uint64_t>(y), out);
    }
    return out;
  }

 private:
  // 4 bits of template, two numbers of 30 bits. The constant has a = 1, so that no key is 0.
  static uint64_t key(Template t, uint32_t a, uint32_t b = 0) {
    return static_cast<uint64_t>(t) << 60 | static_cast<uint64_t>(a) << 30 | b;
  }
  static std::string spell(uint64_t key, const std::vector<std::string>& words) {
    const auto t = static_cast<Template>(key >> 60);
    const uint32_t a = key >> 30 & 0x3FFFFFFF, b = key & 0x3FFFFFFF;
    std::string name(kPrefixes[t]);
    if (t == kConstant) return name;
    if (t >= kEnds) {
      name += words[a];
      if (t >= kLeft) name += "*" + words[b];
      return name;
    }
    encode_node(a, name);
    if (t >= kC_1C) {
      name += '.';
      encode_node(b, name);
    }
    return name;
  }

  void adopt(const Names& init) {
    check_indices(init.tags, kTags, "tag_to_idx");
    for (const auto& [name, index] : init.tags)
      if (name != kTagNames[index]) bad("'tag_to_idx' must number the five tags of pkuseg");
    for (const auto& word : init.unigram) number(word);
    for (const auto& pair : init.bigram) {
      bigrams_.emplace_back(pair);
      split_pair(pair, words_, [&](uint32_t a, uint32_t b) { known_[pair_key(a, b)].first = 1; });
    }
    names_.resize(init.features.size());
    std::u32string text;
    for (const auto& [name, index] : init.features) {
      names_[index] = name;
      const auto slot = static_cast<uint32_t>(index + 1);
      if (name == kPrefixes[kConstant]) index_[key(kConstant, 1)].first = slot;
      read_feature(name, words_, text, [&](Template t, uint32_t a, uint32_t b) { index_[key(t, a, b)].first = slot; });
    }
  }
  uint32_t number(std::string_view utf8) {
    const auto found = numbers_.find(utf8);
    if (found != numbers_.end()) return found->second;
    const auto n = static_cast<uint32_t>(numbers_.size() + 1);
    numbers_.emplace(utf8, n);
    in_trie_.resize(n + 1);
    in_trie_[n] = words_.add(utf8);
    return n;
  }

  void read(std::u32string_view text) {
    splits_.push_back(0);
    std::string word;
    uint32_t before = 0;
    for (size_t i = 0; i <= text.size();) {
      if (i == text.size() || text[i] == '\n') {
        before = 0;
        if (splits_.back() < static_cast<int64_t>(nodes_.size()))
          splits_.push_back(static_cast<int64_t>(nodes_.size()));
        ++i;
        continue;
      }
      if (is_space(text[i])) {
        ++i;
        continue;
      }
      size_t end = i;
      word.clear();
      for (; end < text.size() && !is_space(text[end]); ++end) {
        const char32_t c = rename(text[end]);
        encode_utf8(c, word);
        nodes_.push_back(classify(c));
        const bool first = end == i, last = end + 1 == text.size() || is_space(text[end + 1]);
        tags_.push_back(first ? (last ? 1 : 0) : last ? 3 : end == i + 1 ? 4 : 2);
      }
      const uint32_t now = number(word);
      if (before) {
        pairs_[pair_key(before, now)].first = 1;
        if (in_trie_[before] && in_trie_[now]) known_[pair_key(in_trie_[before], in_trie_[now])].first = 1;
      }
      before = now;
      i = end;
    }
  }

  void extract() {
    std::vector<uint64_t> fresh;  // keys in the order of their first occurrence
    std::vector<int64_t> count;
    const auto old = static_cast<uint32_t>(names_.size());
    words_.trie.link();
    const auto add = [&](uint64_t k) {
      auto& slot = index_[k];
      if (!slot.first) {
        fresh.push_back(k);
        count.push_back(0);
        slot.first = static_cast<uint32_t>(old + fresh.size());
      }
      if (slot.first > old) ++count[slot.first - old - 1];
      ids_.push_back(slot.first - 1);
    };
    row_splits_.push_back(0);
    std::vector<std::array<uint32_t, kMaxWord - 1>> starts, ends;
    for (int64_t k = 0; k < sentences(); ++k) {
      const Node* x = &nodes_[splits_[k]];
      const int64_t n = splits_[k + 1] - splits_[k];
      starts.assign(n + 1, {});
      ends.assign(n + 1, {});  // ends[i + 1]: at i
      for (int64_t i = 0; i < n; ++i) {
        uint32_t link = words_.trie.next(Trie::kRoot, x[i]);
        for (int length = 2; link && length <= kMaxWord && i + length <= n; ++length) {
          link = words_.trie.next(link, x[i + length - 1]);
          starts[i][kMaxWord - length] = ends[i + length][kMaxWord - length] = words_.trie.word(link);
        }
      }
      const auto pairs = [&](Template t, const auto& left, const auto& right) {
        for (uint32_t a : left)
          for (uint32_t b : right)
            if (a && b && known_.find(pair_key(a, b)).first) add(key(t, a, b));
      };
      for (int64_t i = 0; i < n; ++i) {
        add(key(kConstant, 1));
        add(key(kC, x[i]));
        if (i > 0) add(key(kC_1, x[i - 1]));
        if (i + 1 < n) add(key(kC1, x[i + 1]));
        if (i > 1) add(key(kC_2, x[i - 2]));
        if (i + 2 < n) add(key(kC2, x[i + 2]));
        if (i > 0) add(key(kC_1C, x[i - 1], x[i]));
        if (i + 1 < n) add(key(kCC1, x[i], x[i + 1]));
        if (i > 1) add(key(kC_2C_1, x[i - 2], x[i - 1]));
        for (uint32_t word : ends[i + 1])
          if (word) add(key(kEnds, word));
        for (uint32_t word : starts[i])
          if (word) add(key(kStarts, word));
        pairs(kLeft, ends[i], starts[i]);
        pairs(kRight, ends[i + 1], starts[i + 1]);
        row_splits_.push_back(static_cast<int64_t>(ids_.size()));
      }
    }
    std::vector<uint32_t> rank(fresh.size()), place(fresh.size());
    std::iota(rank.begin(), rank.end(), 0u);
    std::stable_sort(rank.begin(), rank.end(), [&](uint32_t a, uint32_t b) { return count[a] > count[b]; });
    order_.resize(fresh.size());
    for (uint32_t r = 0; r < rank.size(); ++r) {
      place[rank[r]] = r;
      order_[r] = fresh[rank[r]];
    }
    for (uint32_t& id : ids_)
      if (id >= old) id = old + place[id - old];
    index_ = Table();
  }

  std::vector<std::string> names_;  // of the model that is trained on
  std::vector<uint64_t> order_;     // keys of further features
  std::vector<std::string> bigrams_;
  std::unordered_map<std::string, uint32_t, TextHash, std::equal_to<>> numbers_;  // all words, however long
  std::vector<uint32_t> in_trie_;
  Words words_;
  Table pairs_, known_, index_;  // neighbours by number; neighbours that make features; features
  std::u32string nodes_;
  std::vector<uint8_t> tags_;
  std::vector<int64_t> splits_, row_splits_;
  std::vector<uint32_t> ids_;
};

struct Options {
  double upper, lower, l2;
  int updates;
};

// When the rates of an epoch of n sentences are updated: every n / updates sentences, but not before the second, and at
// the end. The reference divides by zero below `updates` sentences.
struct Schedule {
  int64_t n, every;
  Schedule(int64_t n, int updates) : n(n), every(std::max<int64_t>(1, n / updates)) {}
  bool operator()(int64_t k) const { return (k > 0 && k % every == 0) || k == n - 1; }
};

// float64 in the reference's order: equal to it but for the last bits of exp.
class ReferenceTrainer {
 public:
  ReferenceTrainer(const Corpus& corpus, double rate, const double* init, int64_t old)
      : corpus_(corpus),
        w_(kTags * (corpus.features() + kTags)),
        rates_(corpus.features() + 1, rate),
        gradient_(w_.size()),
        counts_(rates_.size()),
        seen_(rates_.size(), -1) {
    if (!init) return;
    std::copy(init, init + kTags * old, w_.begin());
    std::copy(init + kTags * old, init + kTags * (old + kTags), w_.end() - kTags * kTags);
  }

  const std::vector<double>& weights() const { return w_; }

  double epoch(const int64_t* order, const Options& o) {
    const Schedule check(corpus_.sentences(), o.updates);
    double error = 0;
    int64_t n = 0;
    std::fill(seen_.begin(), seen_.end(), -1);
    for (int64_t k = 0; k < check.n; ++k) {
      ++n;
      error += sentence(order[k], k);
      if (check(k)) {
        for (size_t f = 0; f < rates_.size(); ++f) {
          rates_[f] *= o.upper - (o.upper - o.lower) * static_cast<double>(counts_[f]) / static_cast<double>(n);
          counts_[f] = 0;
        }
      }
      for (const uint32_t f : fired_)
        for (int y = 0; y < kTags; ++y) step(kTags * static_cast<size_t>(f) + y, f);
      for (int e = 0; e < kTags * kTags; ++e) step(w_.size() - kTags * kTags + e, rates_.size() - 1);
      if (check(k)) {
        for (size_t i = 0; i < w_.size(); ++i) {
          const double rate = rates_[std::min(i / kTags, rates_.size() - 1)];
          w_[i] -= rate * (w_[i] / (o.l2 * o.l2) * static_cast<double>(n) / static_cast<double>(check.n));
        }
        n = 0;
      }
    }
    double squares = 0;
    for (double w : w_) squares += w * w;
    return error + squares / (2.0 * o.l2 * o.l2);
  }

 private:
  using Row = std::array<double, kTags>;

  void step(size_t i, size_t f) {
    w_[i] -= rates_[f] * gradient_[i];
    gradient_[i] = 0;
  }
  static double log_sum(const double* a) {
    double s = a[0];
    for (int i = 1; i < kTags; ++i) {
      const double high = s >= a[i] ? s : a[i], low = s >= a[i] ? a[i] : s;
      s = high + std::log(1 + std::exp(low - high));
    }
    return s;
  }

  // Adds the gradient of one sentence, lists its features in fired_ and returns log Z - the gold path's score.
  double sentence(int64_t which, int64_t stamp) {
    const int64_t from = corpus_.splits()[which], n = corpus_.splits()[which + 1] - from;
    const int64_t* rows = &corpus_.row_splits()[from];
    const uint32_t* ids = corpus_.ids().data();
    const uint8_t* gold = &corpus_.tags()[from];
    const size_t edges = w_.size() - kTags * kTags;

    double edge[kTags][kTags];  // [before][after]
    for (int a = 0; a < kTags; ++a)
      for (int b = 0; b < kTags; ++b) edge[a][b] = 1.0 + w_[edges + b * kTags + a];
    score_.assign(n, {});
    for (int64_t i = 0; i < n; ++i)
      for (int64_t r = rows[i]; r < rows[i + 1]; ++r)
        for (int y = 0; y < kTags; ++y) score_[i][y] += w_[kTags * static_cast<size_t>(ids[r]) + y];

    beta_.assign(n, {});
    gold_beta_.assign(n, 0.0);
    double sums[kTags];
    for (int64_t i = n - 1; i > 0; --i) {
      for (int a = 0; a < kTags; ++a) {
        for (int b = 0; b < kTags; ++b) sums[b] = edge[a][b] + (beta_[i][b] + score_[i][b]);
        beta_[i - 1][a] = log_sum(sums);
      }
      gold_beta_[i - 1] = edge[gold[i - 1]][gold[i]] + (gold_beta_[i] + score_[i][gold[i]]);
    }
    alpha_.resize(n);
    gold_alpha_.resize(n);
    for (int64_t i = 0; i < n; ++i) {
      if (i == 0) {
        alpha_[0] = score_[0];
        gold_alpha_[0] = score_[0][gold[0]];
        continue;
      }
      for (int b = 0; b < kTags; ++b) {
        for (int a = 0; a < kTags; ++a) sums[a] = edge[a][b] + alpha_[i - 1][a];
        alpha_[i][b] = log_sum(sums) + score_[i][b];
      }
      gold_alpha_[i] = (edge[gold[i - 1]][gold[i]] + gold_alpha_[i - 1]) + score_[i][gold[i]];
    }
    const double z = log_sum(alpha_[n - 1].data()), gold_z = gold_alpha_[n - 1];

    double model[kTags * kTags] = {}, truth[kTags * kTags] = {};
    for (int64_t i = 1; i < n; ++i) {
      for (int b = 0; b < kTags; ++b)
        for (int a = 0; a < kTags; ++a)
          model[b * kTags + a] += std::exp(edge[a][b] + ((score_[i][b] + beta_[i][b]) + alpha_[i - 1][a]) - z);
      const int b = gold[i], a = gold[i - 1];
      truth[b * kTags + a] += std::exp(edge[a][b] + ((score_[i][b] + gold_beta_[i]) + gold_alpha_[i - 1]) - gold_z);
    }
    fired_.clear();
    for (int64_t i = 0; i < n; ++i) {
      Row g;
      for (int y = 0; y < kTags; ++y) g[y] = std::exp(beta_[i][y] + alpha_[i][y] - z);
      g[gold[i]] -= std::exp(gold_beta_[i] + gold_alpha_[i] - gold_z);
      for (int64_t r = rows[i]; r < rows[i + 1]; ++r) {
        for (int y = 0; y < kTags; ++y) gradient_[kTags * static_cast<size_t>(ids[r]) + y] += g[y];
        if (seen_[ids[r]] != stamp) {
          seen_[ids[r]] = stamp;
          ++counts_[ids[r]];
          fired_.push_back(ids[r]);
        }
      }
    }
    for (int e = 0; e < kTags * kTags; ++e) gradient_[edges + e] += model[e] - truth[e];
    ++counts_.back();
    return z - gold_z;
  }

  const Corpus& corpus_;
  std::vector<double> w_, rates_, gradient_;  // one rate per feature; the last is that of all transitions
  std::vector<int64_t> counts_, seen_;
  std::vector<uint32_t> fired_;
  std::vector<Row> score_, alpha_, beta_;
  std::vector<double> gold_alpha_, gold_beta_;
};

typedef float Floats __attribute__((vector_size(32)));
typedef int32_t FloatMask __attribute__((vector_size(32)));

// e^x for x <= 0, to 2 units in the last place; 0 below -87.
inline __attribute__((always_inline)) void exponential(Floats& x) {
  const Floats low = Floats{} - 87.0f;
  const FloatMask tiny = x < low;
  x = tiny ? low : x;
  const Floats k = x * 1.44269504f - 0.5f;
  const FloatMask whole = __builtin_convertvector(k, FloatMask);  // towards zero: rounds x / ln 2, as x <= 0
  const Floats n = __builtin_convertvector(whole, Floats);
  const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const FloatMask bits = (whole + 127) << 23;
  Floats scale;
  std::memcpy(&scale, &bits, sizeof scale);
  x = tiny ? Floats{} : p * scale;
}

// What one sentence of the fast trainer reads and writes. A row is 5 weights, the rate, and since the last update the
// count of sentences that fired it and the number of the last of them: half a cache line.
struct FastSentence {
  float* rows;
  const int64_t* row_splits;
  const uint32_t* ids;
  const uint8_t* gold;
  int64_t n;
  float* edges;   // [before][8 after]; a row like the others, its rate in `edge_rate`
  float* buffer;  // 4 x 8 floats per position
  float edge_rate;
  float stamp;
  bool check;
  float upper, range;  // range: (upper - lower) / n
};

// One sentence: gradient by scaled recursions, counts, and the step. Returns log Z - the gold path's score.
CLONES static double fast_sentence(const FastSentence& s) {
  const Floats zero = {};
  const FloatMask live = {-1, -1, -1, -1, -1, 0, 0, 0};
  Floats edge[kTags], back[kTags];
  for (int a = 0; a < kTags; ++a) {
    std::memcpy(&edge[a], s.edges + 8 * a, sizeof(Floats));
  }
  float high = -1e30f;
  for (int a = 0; a < kTags; ++a)
    for (int b = 0; b < kTags; ++b) high = std::max(high, edge[a][b]);
  for (int a = 0; a < kTags; ++a) {
    Floats e = edge[a] - high;
    exponential(e);
    edge[a] = live ? e : zero;
  }
  for (int b = 0; b < kTags; ++b) back[b] = Floats{edge[0][b], edge[1][b], edge[2][b], edge[3][b], edge[4][b], 0, 0, 0};

  double z = 0, gold = 0;
  for (int64_t i = 0; i < s.n; ++i) {
    Floats score = {};
    for (int64_t r = s.row_splits[i]; r < s.row_splits[i + 1]; ++r) {
      Floats row;
      std::memcpy(&row, s.rows + 8 * static_cast<size_t>(s.ids[r]), sizeof row);
      score += row;
    }
    const float top = std::max({score[0], score[1], score[2], score[3], score[4]});
    z += top;
    gold += score[s.gold[i]];
    if (i) gold += s.edges[8 * s.gold[i - 1] + s.gold[i]];
    score = live ? score - top : zero;
    exponential(score);
    score = live ? score : zero;
    Floats alpha = score;
    if (i) {
      Floats before, sum = {};
      std::memcpy(&before, s.buffer + 16 * (i - 1), sizeof before);
      for (int a = 0; a < kTags; ++a) sum += before[a] * edge[a];
      alpha = sum * score;
    }
    const float total = alpha[0] + alpha[1] + alpha[2] + alpha[3] + alpha[4];
    z += std::log(total) + (i ? high : 0.0f);
    alpha *= 1.0f / total;
    score *= 1.0f / total;
    std::memcpy(s.buffer + 16 * i, &alpha, sizeof alpha);
    std::memcpy(s.buffer + 16 * i + 8, &score, sizeof score);
  }

  Floats sums[kTags] = {}, beta = {};
  beta = live ? beta + 1.0f : zero;
  for (int64_t i = s.n - 1; i >= 0; --i) {
    Floats alpha, score;
    std::memcpy(&alpha, s.buffer + 16 * i, sizeof alpha);
    std::memcpy(&score, s.buffer + 16 * i + 8, sizeof score);
    Floats g = alpha * beta;
    g[s.gold[i]] -= 1.0f;
    for (int64_t r = s.row_splits[i]; r < s.row_splits[i + 1]; ++r) {
      float* row = s.rows + 8 * static_cast<size_t>(s.ids[r]);
      if (row[7] == s.stamp) continue;
      row[7] = s.stamp;
      row[6] += 1.0f;
    }
    std::memcpy(s.buffer + 16 * i + 8, &g, sizeof g);
    if (!i) break;
    const Floats t = score * beta;
    Floats before;
    std::memcpy(&before, s.buffer + 16 * (i - 1), sizeof before);
    for (int a = 0; a < kTags; ++a) sums[a] += before[a] * t;
    beta = zero;
    for (int b = 0; b < kTags; ++b) beta += t[b] * back[b];
  }

  for (int64_t i = 0; i < s.n; ++i) {
    Floats g;
    std::memcpy(&g, s.buffer + 16 * i + 8, sizeof g);
    for (int64_t r = s.row_splits[i]; r < s.row_splits[i + 1]; ++r) {
      float* row = s.rows + 8 * static_cast<size_t>(s.ids[r]);
      const float rate = s.check ? row[5] * (s.upper - s.range * row[6]) : row[5];
      Floats x;
      std::memcpy(&x, row, sizeof x);
      x -= live ? rate * g : zero;
      std::memcpy(row, &x, sizeof x);
    }
  }
  for (int a = 0; a < kTags; ++a) {
    sums[a] *= edge[a];
    for (int b = 0; b < kTags; ++b) s.edges[8 * a + b] -= s.edge_rate * sums[a][b];
  }
  for (int64_t i = 1; i < s.n; ++i) s.edges[8 * s.gold[i - 1] + s.gold[i]] += s.edge_rate;
  return z - gold;
}

// Of all rows: the rate's update, and the decay of the weights by it.
CLONES static void fast_update(float* rows, size_t n, float upper, float range, float decay) {
  for (size_t f = 0; f < n; ++f) {
    float* row = rows + 8 * f;
    const float rate = row[5] * (upper - range * row[6]);
    const float keep = 1.0f - rate * decay;
    for (int y = 0; y < kTags; ++y) row[y] *= keep;
    row[5] = rate;
    row[6] = row[7] = 0;
  }
}

// float32, scaled recursions: the same steps, many times as fast.
class FastTrainer {
 public:
  FastTrainer(const Corpus& corpus, double rate, const double* init, int64_t old)
      : corpus_(corpus), rows_(8 * corpus.features()), edge_rate_(static_cast<float>(rate)) {
    for (int64_t f = 0; f < corpus.features(); ++f) {
      rows_[8 * f + 5] = static_cast<float>(rate);
      for (int y = 0; init && f < old && y < kTags; ++y) rows_[8 * f + y] = static_cast<float>(init[kTags * f + y]);
    }
    for (int a = 0; init && a < kTags; ++a)
      for (int b = 0; b < kTags; ++b) edges_[8 * a + b] = static_cast<float>(init[kTags * (old + b) + a]);
    int64_t longest = 0;
    for (int64_t k = 0; k < corpus.sentences(); ++k)
      longest = std::max(longest, corpus.splits()[k + 1] - corpus.splits()[k]);
    buffer_.resize(16 * longest);
  }

  std::vector<double> weights() const {
    const int64_t n = corpus_.features();
    std::vector<double> w(kTags * (n + kTags));
    for (int64_t f = 0; f < n; ++f) std::copy_n(&rows_[8 * f], kTags, &w[kTags * f]);
    for (int a = 0; a < kTags; ++a)
      for (int b = 0; b < kTags; ++b) w[kTags * (n + b) + a] = edges_[8 * a + b];
    return w;
  }

  double epoch(const int64_t* order, const Options& o) {
    const Schedule check(corpus_.sentences(), o.updates);
    const auto upper = static_cast<float>(o.upper), range = static_cast<float>(o.upper - o.lower);
    double error = 0;
    float n = 0;
    for (int64_t k = 0; k < check.n; ++k) {
      n += 1;
      const int64_t from = corpus_.splits()[order[k]];
      if (check(k)) edge_rate_ *= upper - range;
      error += fast_sentence({rows_.data(), &corpus_.row_splits()[from], corpus_.ids().data(), &corpus_.tags()[from],
                              corpus_.splits()[order[k] + 1] - from, edges_, buffer_.data(), edge_rate_, n, check(k),
                              upper, range / n});
      if (!check(k)) continue;
      const auto decay = static_cast<float>(n / (o.l2 * o.l2 * static_cast<double>(check.n)));
      fast_update(rows_.data(), corpus_.features(), upper, range / n, decay);
      for (float& w : edges_) w *= 1.0f - edge_rate_ * decay;
      n = 0;
    }
    double squares = 0;
    for (int64_t f = 0; f < corpus_.features(); ++f)
      for (int y = 0; y < kTags; ++y) squares += static_cast<double>(rows_[8 * f + y]) * rows_[8 * f + y];
    for (float w : edges_) squares += static_cast<double>(w) * w;
    return error + squares / (2.0 * o.l2 * o.l2);
  }

 private:
  const Corpus& corpus_;
  std::vector<float> rows_, buffer_;
  float edges_[8 * kTags] = {};
  float edge_rate_;
};

}  // namespace pkuseg
