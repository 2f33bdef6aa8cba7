#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "pkuseg_files.h"
#include "pkuseg_text.h"

// pkuseg's part-of-speech model: a second chain over words.
namespace pkuseg {

// Right to left over [n, tags] scores; as the segmenter's, for any number of tags. edges[y * tags + k]: y before k.
inline void viterbi_any(const double* nodes, int64_t n, int tags, const double* edges, int32_t* out) {
  if (!n) return;
  std::vector<double> best(nodes + (n - 1) * tags, nodes + n * tags), top(tags);
  std::vector<int32_t> back(n * tags);
  for (int64_t i = n - 1; i-- > 0;) {
    for (int y = 0; y < tags; ++y) {
      const double node = nodes[i * tags + y];
      top[y] = best[0] + node + edges[y * tags];
      int32_t which = 0;
      for (int k = 1; k < tags; ++k) {
        const double score = best[k] + node + edges[y * tags + k];
        if (score >= top[y]) {
          top[y] = score;
          which = k;
        }
      }
      back[i * tags + y] = which;
    }
    best.swap(top);
  }
  out[0] = 0;
  for (int k = 1; k < tags; ++k)
    if (best[out[0]] < best[k]) out[0] = k;
  for (int64_t i = 1; i < n; ++i) out[i] = back[(i - 1) * tags + out[i - 1]];
}

class Tagger {
 public:
  Tagger(const Names& names, const double* weights, int64_t features, int tags)
      : tags_(tags), weights_(weights, weights + tags * (features + tags)), edges_(tags * tags), names_(tags) {
    check_indices(names.tags, tags, "tag_to_idx");
    check_indices(names.features, features, "feature_to_idx");
    if (!features || !tags) bad("'feature_to_idx' and 'tag_to_idx' must have at least one entry");
    std::u32string text;
    for (const auto& [name, index] : names.tags) {
      decode_utf8(name, text);  // throws where it is none: tags are given as str
      names_[index] = name;
    }
    features_.reserve(features);
    for (const auto& [name, index] : names.features) features_.emplace(name, index);
    for (int y = 0; y < tags; ++y)
      for (int k = 0; k < tags; ++k) edges_[y * tags + k] = 1.0 + weights[features * tags + k * tags + y];
  }

  const std::string& name(int tag) const { return names_[tag]; }

  std::vector<int32_t> tag(const std::vector<std::u32string>& raw) const {
    const auto n = static_cast<int64_t>(raw.size());
    std::vector<std::u32string> words(raw.size());
    std::vector<std::string> spelt(raw.size());
    for (int64_t i = 0; i < n; ++i) {
      bool number = true;
      for (char32_t c : raw[i]) {
        words[i] += rename(c);
        number = number && classify(words[i].back()) == kNumber;
      }
      if (number) words[i] = U"**Num";
      for (char32_t c : words[i]) encode_utf8(c, spelt[i]);
    }
    std::vector<double> nodes(n * tags_);
    std::string name;
    for (int64_t i = 0; i < n; ++i) {
      const auto& w = words[i];
      double* node = &nodes[i * tags_];
      const auto add = [&](int64_t feature) {
        for (int y = 0; y < tags_; ++y) node[y] += weights_[feature * tags_ + y];
      };
      const auto look = [&](const std::string& key) {
        const auto found = features_.find(key);
        if (found != features_.end()) add(found->second);
      };
      const auto affix = [&](const char* head, size_t j, std::u32string_view part) {
        name = head + std::to_string(j) + ".";
        for (char32_t c : part) encode_utf8(c, name);
        look(name);
      };
      add(0);
      look("w." + spelt[i]);
      for (size_t j = 1; j <= 3 && j <= w.size(); ++j) {
        affix("tr1.pre.", j, std::u32string_view(w).substr(0, j));
        affix("tr1.post.", j, std::u32string_view(w).substr(w.size() - j));
      }
      look("tr1.w-1." + (i > 0 ? spelt[i - 1] : "BOS"));
      look("tr1.w1." + (i + 1 < n ? spelt[i + 1] : "EOS"));
      look("tr1.w-2." + (i > 1 ? spelt[i - 2] : "BOS"));
      look("tr1.w2." + (i + 2 < n ? spelt[i + 2] : "EOS"));
      look("tr1.w_-1_0." + (i > 0 ? spelt[i - 1] + "." + spelt[i] : "BOS"));
      look("tr1.w_0_1." + (i + 1 < n ? spelt[i] + "." + spelt[i + 1] : "EOS"));
    }
    std::vector<int32_t> out(n);
    viterbi_any(nodes.data(), n, tags_, edges_.data(), out.data());
    return out;
  }

 private:
  int tags_;
  std::vector<double> weights_, edges_;
  std::vector<std::string> names_;
  std::unordered_map<std::string, int64_t> features_;
};

}  // namespace pkuseg
