#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <vector>

#include "unicode.h"

// Boundaries that are settled before decoding.
namespace cws {

enum Rule : uint32_t { kGraphemeRule = 1, kLatinRule = 2, kNumberRule = 4, kUrlRule = 8, kEmailRule = 16 };
inline constexpr uint32_t kAllRules = 31;

// kInside: no boundary either, but because of a word of the user, not of a rule.
enum Mask : uint8_t { kFree, kJoint, kStart, kInside };

// Is there no grapheme cluster boundary between `at - 1` and `at` (UAX #29)? The sentence begins at `begin`; `joined`
// tells whether `at - 1` continues a cluster.
inline bool joins_grapheme(const uint8_t* cls, int64_t begin, int64_t at, bool joined) {
  const uint8_t a = cls[at - 1], b = cls[at];
  if (a == kControl || b == kControl) return false;
  const auto extends = [](uint8_t c) { return c >= kExtend && c <= kLinker; };
  if (extends(b) || b == kJoiner || b == kSpacingMark || a == kPrepend) return true;
  if (a == kL) return b == kL || b == kV || b == kLV || b == kLVT;
  if (a == kV || a == kLV) return b == kV || b == kT;
  if (a == kT || a == kLVT) return b == kT;
  int64_t i = at - 1;
  if (b == kPictographic && a == kJoiner) {
    for (--i; i >= begin && extends(cls[i]);) --i;
    return i >= begin && cls[i] == kPictographic;
  }
  if (b == kFlag && a == kFlag) return !(joined && at - 2 >= begin && cls[at - 2] == kFlag);
  if (b == kConsonant) {
    bool linked = false;
    for (; i >= begin && (cls[i] == kConjunctExtend || cls[i] == kLinker || cls[i] == kJoiner); --i) {
      linked |= cls[i] == kLinker;
    }
    return linked && i >= begin && cls[i] == kConsonant;
  }
  return false;
}

// URL and e-mail addresses in a run of ASCII characters: [begin, end) of each, in order.
class Addresses {
 public:
  struct Span {
    int64_t begin, end;
  };

  // The run is text[begin..end); text[begin - 1] is no ASCII character.
  const std::vector<Span>& find(const uint32_t* text, int64_t begin, int64_t end, uint32_t rules) {
    urls_.clear();
    emails_.clear();
    if (rules & kUrlRule) find_urls(text, begin, end);
    if (rules & kEmailRule) find_emails(text, begin, end);
    found_.clear();
    size_t u = 0, e = 0;
    int64_t from = begin;
    while (u < urls_.size() || e < emails_.size()) {
      const bool url = e == emails_.size() || (u < urls_.size() && urls_[u].begin <= emails_[e].begin);
      const Span span = url ? urls_[u++] : emails_[e++];
      if (span.begin < from) continue;
      found_.push_back(span);
      from = span.end;
    }
    return found_;
  }

 private:
  static bool alnum(uint32_t c) { return is_latin(c) || is_digit(c); }
  static bool in(uint32_t c, const char* set) { return c < 0x80 && c != 0 && std::strchr(set, int(c)); }
  static bool in_scheme(uint32_t c) { return alnum(c) || c == '+' || c == '.' || c == '-'; }
  static bool in_url(uint32_t c) { return alnum(c) || in(c, "-._~:/?#[]@!$&'()*+,;=%"); }
  static bool in_local(uint32_t c) { return alnum(c) || in(c, "._%+-"); }
  static bool in_label(uint32_t c) { return alnum(c) || c == '-'; }

  void find_urls(const uint32_t* text, int64_t begin, int64_t end) {
    int64_t scheme = begin;  // end of the scheme characters around `at`
    for (int64_t at = begin; at < end;) {
      if (!is_latin(text[at]) || (at > begin && alnum(text[at - 1]))) {
        ++at;
        continue;
      }
      if (scheme <= at) {
        scheme = at;
        while (scheme < end && in_scheme(text[scheme])) ++scheme;
      }
      int64_t body = -1;
      if (end - scheme > 3 && text[scheme] == ':' && text[scheme + 1] == '/' && text[scheme + 2] == '/' &&
          in_url(text[scheme + 3])) {
        body = scheme + 3;
      } else if (end - at > 4 && (text[at] | 0x20) == 'w' && (text[at + 1] | 0x20) == 'w' &&
                 (text[at + 2] | 0x20) == 'w' && text[at + 3] == '.' && in_url(text[at + 4])) {
        body = at + 4;
      }
      if (body < 0) {
        ++at;
        continue;
      }
      int64_t stop = body;
      while (stop < end && in_url(text[stop])) ++stop;
      int64_t last = stop;
      while (last > body && in(text[last - 1], ".,;:!?'\")]}")) --last;
      if (last > body) urls_.push_back({at, last});
      at = stop;
    }
  }

  void find_emails(const uint32_t* text, int64_t begin, int64_t end) {
    int64_t from = begin;  // end of the last address
    for (int64_t at = begin; at < end; ++at) {
      if (text[at] != '@') continue;
      int64_t local = at;
      while (local > begin && local > from && in_local(text[local - 1])) --local;
      const bool cut = local > begin && in_local(text[local - 1]);
      if (local == at || cut) {
        from = std::max(from, at);
        continue;
      }
      int64_t stop = at + 1, labels = 0;
      for (;;) {
        const int64_t label = stop;
        while (stop < end && in_label(text[stop])) ++stop;
        if (stop == label) {
          stop = label - (labels > 0);  // not the dot before
          break;
        }
        ++labels;
        if (stop == end || text[stop] != '.') break;
        ++stop;
      }
      if (labels < 2) {
        from = std::max(from, at);
        continue;
      }
      emails_.push_back({local, stop});
      from = stop;
      at = stop - 1;
    }
  }

  std::vector<Span> urls_, emails_, found_;
};

// Masks of the characters [begin, end) of one sentence, which are kFree before. What lies around the sentence can be
// read, for eight characters, and is plain.
class Rules {
 public:
  void apply(const uint32_t* text, const uint8_t* cls, int64_t begin, int64_t end, uint32_t rules, uint8_t* mask) {
    runs_.clear();
    for (int64_t at = next_special(cls, begin, end); at < end; at = next_special(cls, at + 1, end)) {
      special(text, cls, begin, end, at, rules, mask);
    }
    mask[begin] = kStart;
    for (const auto& run : runs_) {
      for (const auto& span : addresses_.find(text, run.begin, run.end, rules)) {
        for (int64_t i = span.begin + 1; i < span.end; ++i) mask[i] = kJoint;
        if (!(rules & kGraphemeRule) || span.begin == begin || !joins_grapheme(cls, begin, span.begin, false)) {
          mask[span.begin] = kStart;
        }
        if (span.end < end && (!(rules & kGraphemeRule) || !joins_grapheme(cls, begin, span.end, false))) {
          mask[span.end] = kStart;
        }
      }
    }
  }

 private:
  static int64_t next_special(const uint8_t* cls, int64_t at, int64_t end) {
    for (; at < end; at += 8) {
      uint64_t eight;
      std::memcpy(&eight, cls + at, 8);
      if (eight) {
        if constexpr (std::endian::native == std::endian::big) eight = __builtin_bswap64(eight);
        return std::min(end, at + (std::countr_zero(eight) >> 3));
      }
    }
    return end;
  }

  void special(const uint32_t* text, const uint8_t* cls, int64_t begin, int64_t end, int64_t at, uint32_t rules,
               uint8_t* mask) {
    const uint8_t c = cls[at], before = at > begin ? cls[at - 1] : uint8_t(kPlain);
    switch (c) {
      case kLetter:
        if ((rules & kLatinRule) && before == kLetter) mask[at] = kJoint;
        if ((rules & kUrlRule) && (text[at] | 0x20) == 'w' && end - at > 4 && text[at + 3] == '.') add_run(text, at);
        break;
      case kDigitClass:
        if (rules & kNumberRule) {
          if (before == kDigitClass) mask[at] = kJoint;
          if (before == kPoint && at - 2 >= begin && cls[at - 2] == kDigitClass) mask[at - 1] = mask[at] = kJoint;
        }
        break;
      case kTrigger:
        if (rules & (text[at] == '@' ? kEmailRule : kUrlRule)) add_run(text, at);
        break;
    }
    if (!(rules & kGraphemeRule)) return;
    if (at > begin && c > kTrigger && joins_grapheme(cls, begin, at, mask[at - 1] & kJoint)) mask[at] = kJoint;
    if (before == kPrepend && c != kControl) mask[at] = kJoint;
    if (c == kPrepend && at + 1 < end && cls[at + 1] == kPlain) mask[at + 1] = kJoint;
  }

  // The run of ASCII characters around `at`; what surrounds a sentence is no such character.
  void add_run(const uint32_t* text, int64_t at) {
    const auto ascii = [&](int64_t i) { return text[i] - 0x21u < 0x5Eu; };
    if (!runs_.empty() && at < runs_.back().end) return;
    Addresses::Span run{at, at + 1};
    while (ascii(run.begin - 1)) --run.begin;
    while (ascii(run.end)) ++run.end;
    runs_.push_back(run);
  }

  std::vector<Addresses::Span> runs_;
  Addresses addresses_;
};

}  // namespace cws
