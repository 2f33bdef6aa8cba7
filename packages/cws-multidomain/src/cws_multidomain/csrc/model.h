#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "container.h"
#include "lexicon.h"
#include "perfect.h"
#include "text.h"

// The tables of a model file, read in place, and the sums of them that a mixture of domains needs.
namespace cws {

inline constexpr int kMostLexicons = 2;
inline constexpr int kJoints = 5 * kMarks * 5;
inline constexpr int kLargestJoint = 8191;  // so that an int16 emission cannot overflow: 10 rows of int8, 2 of these, 2
inline constexpr int kLargestTransition = 1 << 20;

// What one domain adds to the rows of pairs, for few of them: rows in the order of their slots, d = 1, 0, -1, -2.
struct Delta {
  const uint64_t* bits = nullptr;   // which slots have a row
  const uint32_t* ranks = nullptr;  // rows before those of each 64 slots
  const int8_t* rows = nullptr;     // [][4][4]

  // The row of a slot, or null.
  const int8_t* operator()(uint32_t slot) const {
    const uint64_t bit = uint64_t(1) << (slot & 63);
    if (!bits || !(bits[slot >> 6] & bit)) return nullptr;
    return rows + 16 * (size_t(ranks[slot >> 6]) + size_t(std::popcount(bits[slot >> 6] & (bit - 1))));
  }
};

// What is added up at a position; rows of 4 tags. Each hashed table has a row of zeros at the end, for what is absent.
struct Tables {
  const int8_t* unigram = nullptr;             // [symbols][5][4]
  const int8_t* bigram = nullptr;              // [size + 1][4][4]
  const int8_t* skip = nullptr;                // [size + 1][4], or nothing
  const int16_t* joint[kMostLexicons] = {};    // [kJoints][4]
  const int8_t* charmark[kMostLexicons] = {};  // [size + 1][4]
  const int32_t* transition = nullptr;         // [4][4]
  Delta delta;                                 // to add to bigram, or nothing
};

struct Hashed {
  PerfectHash hash;
  const uint32_t* keys = nullptr;  // [size]

  // The row of a key, the last row if it is absent.
  uint32_t operator()(uint32_t key) const {
    const uint32_t slot = hash(key);
    const uint32_t found = 0u - uint32_t(keys[slot] == key);  // arithmetic: a branch here would be a coin's toss
    return hash.size ^ ((hash.size ^ slot) & found);
  }
};

struct Gate {
  const int16_t* table = nullptr;  // [8192][width]
  const double* bias = nullptr;    // [domains]
  int width = 0;                   // domains, rounded up to a multiple of 4
  double scale = 1;
  double threshold = 0.6;

  static uint32_t row(uint32_t a, uint32_t b) { return (a * 0x9E3779B1u + b * 0x85EBCA77u) >> 19; }
};

class Model {
 public:
  explicit Model(Container&& container) : file_(std::move(container)) {
    size_t n = 0;
    // symbols, domains, lexicons, skip?, gate?, marks that the tables of lexicons were trained with (1)
    const uint32_t* shape = file_.array_of<uint32_t>("shape", 8);
    const double* numbers =
        file_.array_of<double>("numbers", 4);  // units per nat, temperature, gate's scale, threshold
    n_symbols_ = shape[0];
    n_domains_ = shape[1];
    n_lexicons_ = shape[2];
    if (n_symbols_ < kCharacters || n_symbols_ >= kNoKey >> 16)
      file_.refuse("the number of symbols", "is out of range");
    if (n_lexicons_ > kMostLexicons) file_.refuse("the number of lexicons", "is out of range");
    if (n_domains_ > 255) file_.refuse("the number of domains", "is out of range");
    scale_ = numbers[0];
    temperature_ = numbers[1];
    check_number("the scale", scale_, kLeastUnit);
    check_number("the temperature", temperature_, kLeastUnit);

    symbols_.plane = file_.array_of<uint16_t>("symbols", 0x10000);
    symbols_.others = file_.array<uint32_t>("symbols.others", n);
    symbols_.n_others = int64_t(n);
    symbols_.of_others = file_.array_of<uint16_t>("symbols.of_others", n);
    if (*std::max_element(symbols_.plane, symbols_.plane + 0x10000) >= n_symbols_ ||
        (n && *std::max_element(symbols_.of_others, symbols_.of_others + n) >= n_symbols_)) {
      file_.refuse("section \"symbols\"", "names a symbol that is not there");
    }
    general_.unigram = file_.array_of<int8_t>("unigram", size_t(n_symbols_) * 20);
    general_.bigram = hashed("bigram", 16, bigram_);
    if (shape[3]) general_.skip = hashed("skip", 4, skip_);
    for (uint32_t k = 0; k < n_lexicons_; ++k) {
      const std::string number = std::to_string(k);
      lexicons_[k] = lexicon("lexicon" + number);
      prints_[k] = lexicons_[k].make_prints();
      lexicons_[k].prints = prints_[k].data();
      general_.joint[k] = joint("joint" + number);
      general_.charmark[k] = hashed("charmark" + number, 4, charmark_[k]);
    }
    general_.transition = file_.array_of<int32_t>("transition", 16);
    for (int k = 0; k < 16; ++k) {
      check_number("section \"transition\"", general_.transition[k], -kLargestTransition, kLargestTransition);
    }
    if (shape[4]) {
      gate_.width = int((n_domains_ + 3) / 4 * 4);
      gate_.table = file_.array_of<int16_t>("gate.table", size_t(8192) * gate_.width);
      gate_.bias = file_.array_of<double>("gate.bias", n_domains_);
      gate_.scale = numbers[2];
      gate_.threshold = numbers[3];
      check_number("the scale of the gate", gate_.scale, kLeastUnit, kFinite);
      check_number("the threshold of the gate", gate_.threshold, -kFinite, kFinite);
      for (uint32_t k = 0; k < n_domains_; ++k) check_number("section \"gate.bias\"", gate_.bias[k], -kFinite, kFinite);
    }
  }

  const Container& file() const { return file_; }
  const SymbolMap& symbols() const { return symbols_; }
  const Tables& general() const { return general_; }
  const Hashed& bigram() const { return bigram_; }
  const Hashed& skip() const { return skip_; }
  const Hashed& charmark(int k) const { return charmark_[k]; }
  const Lexicon& lexicon(int k) const { return lexicons_[k]; }
  const Gate* gate() const { return gate_.table ? &gate_ : nullptr; }
  int n_symbols() const { return int(n_symbols_); }
  int n_domains() const { return int(n_domains_); }
  int n_lexicons() const { return int(n_lexicons_); }
  double scale() const { return scale_; }              // score units per nat
  double temperature() const { return temperature_; }  // in probabilities

 private:
  static constexpr double kLeastUnit = 1e-3;  // that scores are divided by
  static constexpr double kFinite = 1e100;

  void check_number(const std::string& what, double x, double least, double most = 1e9) const {
    if (!(x >= least && x <= most)) file_.refuse(what, "is out of range");
  }

  const int8_t* hashed(const std::string& name, int width, Hashed& table) {
    size_t n = 0;
    const uint32_t* shape = file_.array_of<uint32_t>(name + ".hash", 2);
    table.hash.size = shape[0];
    table.hash.seed = shape[1];
    table.hash.pilots = file_.array<uint16_t>(name + ".pilots", n);
    table.hash.n_pilots = uint32_t(n);
    if (n == 0 || shape[0] == 0) file_.refuse("section \"" + name + ".hash\"", "is empty");
    table.keys = file_.array_of<uint32_t>(name + ".keys", table.hash.size);
    check_places(name, table.hash, [&](uint32_t slot) { return table.keys[slot]; }, kNoKey);
    return file_.array_of<int8_t>(name + ".rows", (size_t(table.hash.size) + 1) * width);
  }

  // Some of the keys must lie where the hash looks for them.
  template <class KeyAt>
  void check_places(const std::string& name, const PerfectHash& hash, KeyAt key_at, uint32_t nothing) const {
    for (uint32_t slot = 0; slot < hash.size; slot += 1 + hash.size / 64) {
      const uint32_t key = key_at(slot);
      if (key != nothing && hash(key) != slot) file_.refuse("section \"" + name + ".pilots\"", "does not fit the keys");
    }
  }

  Lexicon lexicon(const std::string& name) {
    size_t n = 0;
    const uint32_t* shape = file_.array_of<uint32_t>(name + ".hash", 5);
    Lexicon out;
    out.hash.size = shape[0];
    out.hash.seed = shape[1];
    out.n_states = shape[2];
    out.bytes = shape[3];
    out.target_bits = shape[4];
    if (out.hash.size == 0 || out.bytes < 1 || out.bytes > 8 || out.target_bits < 1 || out.target_bits > 31 ||
        out.target_bits >= 8 * out.bytes) {
      file_.refuse("section \"" + name + ".hash\"", "has impossible numbers");
    }
    out.hash.pilots = file_.array<uint16_t>(name + ".pilots", n);
    out.hash.n_pilots = uint32_t(n);
    if (n == 0) file_.refuse("section \"" + name + ".pilots\"", "is empty");
    out.edges = file_.array_of<uint8_t>(name + ".edges", size_t(out.hash.size) * out.bytes + 8);
    out.first = file_.array_of<uint32_t>(name + ".first", n_symbols_);
    out.n_symbols = n_symbols_;
    check_places(name, out.hash, [&](uint32_t slot) { return uint32_t(out.edge(slot) >> out.target_bits); }, 0);
    for (int s = 0; s < kDigit; ++s) {
      if (out.first[s]) file_.refuse("section \"" + name + ".first\"", "has words of symbols that are no characters");
    }
    return out;
  }

  const int16_t* joint(const std::string& name) {
    const int16_t* rows = file_.array_of<int16_t>(name, kJoints * 4);
    const auto [low, high] = std::minmax_element(rows, rows + kJoints * 4);
    if (*low < -kLargestJoint || *high > kLargestJoint) file_.refuse("section \"" + name + "\"", "overflows");
    return rows;
  }

  Container file_;
  uint32_t n_symbols_ = 0, n_domains_ = 0, n_lexicons_ = 0;
  double scale_ = 1, temperature_ = 1;
  SymbolMap symbols_;
  Tables general_;
  Hashed bigram_, skip_, charmark_[kMostLexicons];
  Lexicon lexicons_[kMostLexicons];
  std::vector<uint8_t> prints_[kMostLexicons];
  Gate gate_;
};

// shared + sum of pi_k * domain_k, in memory of its own where any pi_k is not 0.
class Mixture {
 public:
  // weights[k] is that of domain k, counted from 0; none for "general".
  Mixture(const Model& model, const std::vector<double>& weights) : tables_(model.general()) {
    if (std::all_of(weights.begin(), weights.end(), [](double w) { return w == 0; })) return;
    const Container& file = model.file();
    sum_rows(file, weights, "unigram", 20, size_t(model.n_symbols()), unigram_, tables_.unigram);
    // A table of its own is the faster one if the domain has something to add to most pairs, and is larger.
    const size_t k = only(weights);
    if (k < weights.size() && 2 * count_rows(file, k, "bigram") < model.bigram().hash.size) {
      make_delta(file, k, model.bigram().hash.size);
    } else {
      sum_rows(file, weights, "bigram", 16, model.bigram().hash.size, bigram_, tables_.bigram);
    }
    if (tables_.skip) sum_rows(file, weights, "skip", 4, model.skip().hash.size, skip_, tables_.skip);
    for (int k = 0; k < model.n_lexicons(); ++k) {
      const std::string number = std::to_string(k);
      sum_dense(file, weights, "joint" + number, kJoints * 4, kLargestJoint, joint_[k], tables_.joint[k]);
      sum_rows(file, weights, "charmark" + number, 4, model.charmark(k).hash.size, charmark_[k], tables_.charmark[k]);
    }
    sum_dense(file, weights, "transition", 16, kLargestTransition, transition_, tables_.transition);
  }
  Mixture(const Mixture&) = delete;
  Mixture& operator=(const Mixture&) = delete;

  const Tables& tables() const { return tables_; }

  // What domains add, rounded once for all of them.
  template <class T>
  static T rounded(double sum, double low, double high) {
    return T(std::clamp(std::nearbyint(sum), low, high));
  }

 private:
  // The domain that has the weight 1 while all others have none.
  static size_t only(const std::vector<double>& weights) {
    const auto one = std::find(weights.begin(), weights.end(), 1.0);
    const bool others = std::count(weights.begin(), weights.end(), 0.0) + 1 != int64_t(weights.size());
    return others ? weights.size() : size_t(one - weights.begin());
  }

  static size_t count_rows(const Container& file, size_t k, const std::string& name) {
    size_t n = 0;
    file.array<uint32_t>(section(k, name) + ".index", n);
    return n;
  }

  void make_delta(const Container& file, size_t k, uint32_t slots) {
    size_t n = 0;
    const uint32_t* index = file.array<uint32_t>(section(k, "bigram") + ".index", n);
    const int8_t* rows = file.array_of<int8_t>(section(k, "bigram") + ".rows", n * 16);
    bits_.assign(slots / 64 + 1, 0);
    ranks_.assign(bits_.size(), 0);
    delta_.resize(n * 16 + 16);
    for (size_t r = 0; r < n; ++r) {
      if (index[r] >= slots || (r && index[r] <= index[r - 1])) {
        file.refuse("section \"" + section(k, "bigram") + ".index\"", "is not ascending within the table");
      }
      bits_[index[r] >> 6] |= uint64_t(1) << (index[r] & 63);
      for (size_t d = 0; d < 4; ++d) std::copy_n(rows + 16 * r + 4 * d, 4, delta_.begin() + 16 * r + 4 * (3 - d));
    }
    uint32_t before = 0;
    for (size_t w = 0; w < bits_.size(); ++w) {
      ranks_[w] = before;
      before += uint32_t(std::popcount(bits_[w]));
    }
    tables_.delta = {bits_.data(), ranks_.data(), delta_.data()};
  }

  static std::string section(size_t k, const std::string& name) {
    return std::string("d").append(std::to_string(k + 1)).append(".").append(name);
  }

  static void sum_rows(const Container& file, const std::vector<double>& weights, const std::string& name, size_t width,
                       size_t rows, std::vector<int8_t>& own, const int8_t*& table) {
    const size_t all = (rows + (name == "unigram" ? 0 : 1)) * width;
    const bool single = std::count_if(weights.begin(), weights.end(), [](double w) { return w != 0; }) == 1;
    std::vector<float> sums;
    own.assign(table, table + all);
    if (!single) sums.assign(all, 0);
    for (size_t k = 0; k < weights.size(); ++k) {
      if (weights[k] == 0) continue;
      size_t n = 0;
      const uint32_t* index = file.array<uint32_t>(section(k, name) + ".index", n);
      const int8_t* delta = file.array_of<int8_t>(section(k, name) + ".rows", n * width);
      for (size_t r = 0; r < n; ++r) {
        if (index[r] >= rows) file.refuse("section \"" + section(k, name) + ".index\"", "points outside of the table");
        for (size_t j = 0; j < width; ++j) {
          const size_t at = index[r] * width + j;
          const double add = weights[k] * delta[r * width + j];
          if (single)
            own[at] = rounded<int8_t>(own[at] + std::nearbyint(add), -127, 127);
          else
            sums[at] += float(add);
        }
      }
    }
    for (size_t i = 0; i < sums.size(); ++i) {
      own[i] = rounded<int8_t>(own[i] + std::nearbyint(sums[i]), -127, 127);
    }
    table = own.data();
  }

  template <class T>
  static void sum_dense(const Container& file, const std::vector<double>& weights, const std::string& name,
                        size_t count, int largest, std::vector<T>& own, const T*& table) {
    std::vector<double> sums(count, 0);
    for (size_t k = 0; k < weights.size(); ++k) {
      if (weights[k] == 0) continue;
      const T* delta = file.array_of<T>(section(k, name), count);
      for (size_t i = 0; i < count; ++i) sums[i] += weights[k] * delta[i];
    }
    own.resize(count);
    for (size_t i = 0; i < count; ++i) own[i] = rounded<T>(table[i] + std::nearbyint(sums[i]), -largest, largest);
    table = own.data();
  }

  Tables tables_;
  std::vector<int8_t> unigram_, bigram_, skip_, charmark_[kMostLexicons], delta_;
  std::vector<uint64_t> bits_;
  std::vector<uint32_t> ranks_;
  std::vector<int16_t> joint_[kMostLexicons];
  std::vector<int32_t> transition_;
};

}  // namespace cws
