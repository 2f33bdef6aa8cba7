#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

// Text that comes in blocks -> words and lines: a word ends at white space as in Python's str.split, a line at '\n'.

enum class Byte : uint8_t { letter, space, newline, wide };

inline constexpr std::array<Byte, 256> kBytes = [] {
  std::array<Byte, 256> kinds{};
  for (int c = 0x80; c < 0x100; ++c) kinds[c] = Byte::wide;
  for (int c : {0x09, 0x0b, 0x0c, 0x0d, 0x1c, 0x1d, 0x1e, 0x1f, 0x20}) kinds[c] = Byte::space;
  kinds['\n'] = Byte::newline;
  return kinds;
}();

inline Byte kind(char c) { return kBytes[static_cast<uint8_t>(c)]; }

inline bool ends_word(char c) { return kind(c) == Byte::space || kind(c) == Byte::newline; }

inline bool is_wide_space(uint32_t code) {
  return code == 0x85 || code == 0xa0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200a) || code == 0x2028 ||
         code == 0x2029 || code == 0x202f || code == 0x205f || code == 0x3000;
}

struct Code {
  uint32_t value;
  int length;  // bytes; 0 where they are no UTF-8
};

// The code point of two to four bytes at p. Reads no byte behind one that continues nothing, so that any ASCII
// character after the text is guard enough.
inline Code decode(const char* p) {
  const auto byte = [p](int i) { return static_cast<uint8_t>(p[i]); };
  const uint8_t lead = byte(0);
  const int length = lead < 0xc2 ? 0 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : lead < 0xf5 ? 4 : 0;
  uint32_t value = lead & (0xff >> (length + 1));
  for (int i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return {0, 0};
    value = value << 6 | (byte(i) & 0x3f);
  }
  const bool overlong = (length == 3 && value < 0x800) || (length == 4 && value < 0x10000);
  const bool surrogate = value >= 0xd800 && value < 0xe000;
  return overlong || surrogate || value > 0x10ffff ? Code{0, 0} : Code{value, length};
}

// The first byte from p on that may be no letter, or one less than eight before the end.
inline const char* skip_letters(const char* p, const char* end) {
  if constexpr (std::endian::native == std::endian::little) {
    constexpr uint64_t kOnes = 0x0101010101010101;
    for (; end - p >= 8; p += 8) {
      uint64_t bytes;
      std::memcpy(&bytes, p, 8);
      // Bit 7 of each byte below 0x21 (up to the first, which is all that counts) or above 0x7f.
      const uint64_t others = ((bytes - 0x21 * kOnes) | bytes) & 0x80 * kOnes;
      if (others != 0) return p + std::countr_zero(others) / 8;
    }
  }
  return p;
}

// Blocks of a file may end anywhere: what follows the last ASCII white space waits for the next block.
class Tokenizer {
 public:
  explicit Tokenizer(std::string name) : name_(std::move(name)) {}

  // Calls sink.word(std::string_view) and sink.end() at each end of a line.
  template <class Sink>
  void feed(std::string_view block, Sink& sink) {
    size_t first = 0;
    if (!waiting_.empty()) {
      while (first < block.size() && !ends_word(block[first])) ++first;
      const bool ended = first < block.size();
      first += ended;
      waiting_.append(block.substr(0, first));
      if (!ended) return;
      scan(waiting_, sink);
      waiting_.clear();
    }
    size_t last = block.size();
    while (last > first && !ends_word(block[last - 1])) --last;
    scan(block.substr(first, last - first), sink);
    waiting_.assign(block.substr(last));
  }

  template <class Sink>
  void finish(Sink& sink) {
    feed("\n", sink);
  }

 private:
  template <class Sink>
  void scan(std::string_view text, Sink& sink) {
    const char* p = text.data();
    const char* const end = p + text.size();
    if (offset_ == 0 && text.starts_with("\xef\xbb\xbf")) p += 3;
    while (p != end) {
      if (kind(*p) == Byte::newline) {
        sink.end();
        ++line_;
        ++p;
        continue;
      }
      const char* const start = p;
      Code code{0, 1};  // of the character that ends the word
      for (;; p += code.length) {
        p = skip_letters(p, end);
        while (kind(*p) == Byte::letter) ++p;
        if (kind(*p) != Byte::wide) break;
        code = decode(p);
        if (code.length == 0) refuse(offset_ + static_cast<uint64_t>(p - text.data()));
        if (is_wide_space(code.value)) break;
      }
      if (p != start) sink.word({start, static_cast<size_t>(p - start)});
      if (kind(*p) == Byte::wide) {
        p += code.length;
      } else if (kind(*p) == Byte::space) {
        ++p;
      }
    }
    offset_ += text.size();
  }

  [[noreturn]] void refuse(uint64_t offset) const {
    throw std::invalid_argument(name_ + ": line " + std::to_string(line_) + ": invalid UTF-8 at byte " +
                                std::to_string(offset) + " of the text");
  }

  std::string name_;
  std::string waiting_;
  uint64_t offset_ = 0;
  uint64_t line_ = 1;
};
