#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "text.h"

// What the rules need to know of a code point: one class each.
namespace cws {

enum Class : uint8_t {
  kPlain,  // nothing to do, as for nearly all Chinese characters
  kSpace,
  kControl,
  kDigitClass,
  kLetter,   // of the Latin script
  kPoint,    // . , inside numbers
  kTrigger,  // : @ inside addresses
  kExtend,
  kConjunctExtend,  // and extends an Indic conjunct
  kLinker,          // and links its consonants
  kJoiner,
  kFlag,  // regional indicator
  kPrepend,
  kSpacingMark,
  kL,
  kV,
  kT,
  kLV,
  kLVT,
  kPictographic,
  kConsonant,
};

struct ClassRange {
  uint32_t first;
  uint16_t count;
  Class cls;
};

}  // namespace cws

#include "unicode_ranges.h"

namespace cws {

class ClassMap {
 public:
  static const ClassMap& get() {
    static const ClassMap map;
    return map;
  }

  uint8_t operator()(uint32_t c) const { return c < 0x10000 ? plane_[c] : beyond(c); }
  const uint8_t* plane() const { return plane_.data(); }
  uint8_t beyond(uint32_t c) const { return pages_[size_t(page_[(c >> 8) - 0x100]) << 8 | (c & 0xFF)]; }

 private:
  ClassMap() : plane_(0x10000, kPlain), pages_(0x100, kPlain) {
    for (const ClassRange& r : kClassRanges) {
      for (uint32_t c = r.first; c < r.first + r.count; ++c) set(c, r.cls);
    }
    for (uint32_t c = 0xAC00; c < 0xD7A4; ++c) plane_[c] = (c - 0xAC00) % 28 ? kLVT : kLV;
    for (uint32_t c = 0; c < 0x10000; ++c) {
      if (is_space(c)) plane_[c] = kSpace;
      if (is_digit(fold(c))) plane_[c] = kDigitClass;
      if (is_letter(c)) plane_[c] = kLetter;
    }
    plane_['.'] = plane_[','] = plane_[0xFF0E] = kPoint;
    plane_[':'] = plane_['@'] = kTrigger;
  }

  static bool is_letter(uint32_t c) {
    return is_latin(fold(c)) || c == 0xAA || c == 0xBA || (c - 0xC0u < 0x190u && c != 0xD7 && c != 0xF7) ||
           c - 0x1E00u < 0x100u;
  }

  void set(uint32_t c, Class cls) {
    if (c < 0x10000) {
      plane_[c] = cls;
      return;
    }
    uint8_t& page = page_[(c >> 8) - 0x100];
    if (page == 0) {
      page = uint8_t(pages_.size() >> 8);
      pages_.resize(pages_.size() + 0x100, kPlain);
    }
    pages_[size_t(page) << 8 | (c & 0xFF)] = cls;
  }

  std::vector<uint8_t> plane_;
  std::array<uint8_t, 0x1000> page_{};
  std::vector<uint8_t> pages_;
};

}  // namespace cws
