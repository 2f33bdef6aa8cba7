#pragma once

#include <charconv>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

namespace format {

enum class Style { kText, kOffsets, kTsv, kJsonl };
enum class Unit { kChar, kByte, kUtf16 };

// Bytes that grow, without the zeros that std::string writes first.
class Bytes {
 public:
  void put(char c) { *room(1) = c, ++size_; }
  void put(std::string_view text) {
    std::memcpy(room(text.size()), text.data(), text.size());
    size_ += text.size();
  }
  void put(int64_t number) {
    char* at = room(20);
    size_ += static_cast<size_t>(std::to_chars(at, at + 20, number).ptr - at);
  }
  // Inside quotation marks of JSON.
  void escape(std::string_view text) {
    for (const char c : text) {
      if (c == '"' || c == '\\') put('\\');
      if (static_cast<unsigned char>(c) >= 0x20) {
        put(c);
      } else {
        put("\\u00");
        put("0123456789abcdef"[c >> 4]);
        put("0123456789abcdef"[c & 15]);
      }
    }
  }
  std::string_view view() const { return {bytes_.data(), size_}; }

 private:
  char* room(size_t n) {
    if (size_ + n > bytes_.size()) bytes_.resize(2 * (size_ + n) + 4096);
    return bytes_.data() + size_;
  }
  std::vector<char> bytes_;
  size_t size_ = 0;
};

// Writes tokens, whose byte offsets count from the beginning of their row, row by row.
class Writer {
 public:
  Writer(Style style, Unit unit) : style_(style), unit_(unit) {}

  void row(std::string_view row, const int32_t* starts, const int32_t* ends, int64_t n) {
    row_ = row;
    byte_ = at_ = 0;
    const auto token = [&](int64_t i) { return row.substr(size_t(starts[i]), size_t(ends[i] - starts[i])); };
    const auto each = [&](std::string_view between, auto&& write) {
      for (int64_t i = 0; i < n; ++i) {
        if (i) out_.put(between);
        write(i);
      }
    };
    const auto places = [&](int64_t i, char between) {
      out_.put(place(starts[i]));
      out_.put(between);
      out_.put(place(ends[i]));
    };
    switch (style_) {
      case Style::kText:
        each(" ", [&](int64_t i) { out_.put(token(i)); });
        break;
      case Style::kOffsets:
        each(" ", [&](int64_t i) { places(i, ':'); });
        break;
      case Style::kTsv:
        each("", [&](int64_t i) {
          out_.put(token(i));
          out_.put('\t');
          places(i, '\t');
          out_.put('\n');
        });
        break;
      case Style::kJsonl:
        out_.put("{\"tokens\":[");
        each(",", [&](int64_t i) {
          out_.put('"');
          out_.escape(token(i));
          out_.put('"');
        });
        out_.put("],\"offsets\":[");
        each(",", [&](int64_t i) {
          out_.put('[');
          places(i, ',');
          out_.put(']');
        });
        out_.put("]}");
    }
    out_.put('\n');
  }

  std::string_view view() const { return out_.view(); }

 private:
  // The place of a byte of the row in the unit that was asked for, found from the last one: it is rarely far.
  int64_t place(int64_t byte) {
    if (unit_ == Unit::kByte) return byte;
    while (byte_ < byte) at_ += units(byte_++);
    while (byte_ > byte) at_ -= units(--byte_);
    return at_;
  }

  int64_t units(int64_t byte) const {
    const auto c = static_cast<unsigned char>(row_[size_t(byte)]);
    return ((c & 0xC0) != 0x80) + (unit_ == Unit::kUtf16 && c >= 0xF0);
  }

  Style style_;
  Unit unit_;
  std::string_view row_;
  int64_t byte_ = 0, at_ = 0;
  Bytes out_;
};

}  // namespace format
