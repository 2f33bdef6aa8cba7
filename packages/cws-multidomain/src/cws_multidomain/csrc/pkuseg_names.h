#pragma once

#include <array>
#include <string>
#include <string_view>
#include <unordered_map>

#include "pkuseg_table.h"
#include "pkuseg_text.h"

// The names of features, as pkuseg's files spell them.
namespace pkuseg {

enum Template : uint8_t { kConstant, kC, kC_1, kC1, kC_2, kC2, kC_1C, kCC1, kC_2C_1, kEnds, kStarts, kLeft, kRight };
inline constexpr std::array<std::string_view, 13> kPrefixes = {
    "$$", "c.", "c-1.", "c1.", "c-2.", "c2.", "c-1c.", "cc1.", "c-2c-1.", "w-1.", "w1.", "ww.l.", "ww.r."};
inline constexpr int kMaxWord = 6;  // nodes; words of 1 node make no feature

// Words that texts can show, with numbers from 1 on.
class Words {
 public:
  // The number of a word, 0 for one that no text shows, or that is too long or short for features.
  uint32_t add(std::string_view utf8) {
    const auto found = numbers_.find(utf8);
    if (found != numbers_.end()) return found->second;
    decode_utf8(utf8, text_);
    if (!read_nodes(text_, nodes_) || nodes_.size() < 2 || nodes_.size() > kMaxWord) return 0;
    const auto number = static_cast<uint32_t>(numbers_.size() + 1);
    numbers_.emplace(utf8, number);
    trie.insert(nodes_, number);
    return number;
  }
  uint32_t operator[](std::string_view utf8) const {
    const auto found = numbers_.find(utf8);
    return found == numbers_.end() ? 0 : found->second;
  }
  size_t size() const { return numbers_.size(); }
  template <class F>
  void each(F&& f) const {
    for (const auto& [word, number] : numbers_) f(std::string_view(word), number);
  }

  Trie trie;

 private:
  std::unordered_map<std::string, uint32_t, TextHash, std::equal_to<>> numbers_;
  std::u32string text_, nodes_;
};

// Calls f with every pair of words that `name`, two words about '*', can mean.
template <class F>
void split_pair(std::string_view name, const Words& words, F&& f) {
  for (size_t star = name.find('*'); star != std::string_view::npos; star = name.find('*', star + 1)) {
    const uint32_t left = words[name.substr(0, star)], right = words[name.substr(star + 1)];
    if (left && right) f(left, right);
  }
}

// Calls f(template, a, b) with what a feature's name means: nodes or numbers of words, 0 where there is no second.
// Never for a name that no text makes.
template <class F>
void read_feature(std::string_view name, const Words& words, std::u32string& text, F&& f) {
  if (name.empty() || (name[0] != 'c' && name[0] != 'w')) return;
  const size_t dot = name.find('.');
  if (dot == std::string_view::npos) return;
  const std::string_view head = name.substr(0, dot + 1);
  for (int t = kC; t <= kC_2C_1; ++t) {
    if (head != kPrefixes[t]) continue;
    decode_utf8(name.substr(dot + 1), text);
    size_t at = 0;
    Node a = 0, b = 0;
    if (!read_node(text, at, a)) return;
    if (t >= kC_1C && (at >= text.size() || text[at++] != '.' || !read_node(text, at, b))) return;
    if (at == text.size()) f(static_cast<Template>(t), a, b);
    return;
  }
  for (int t = kEnds; t <= kStarts; ++t)
    if (head == kPrefixes[t]) {
      if (const uint32_t word = words[name.substr(dot + 1)]) f(static_cast<Template>(t), word, 0);
      return;
    }
  for (int t = kLeft; t <= kRight; ++t)
    if (name.starts_with(kPrefixes[t]))
      split_pair(name.substr(kPrefixes[t].size()), words,
                 [&](uint32_t a, uint32_t b) { f(static_cast<Template>(t), a, b); });
}

}  // namespace pkuseg
