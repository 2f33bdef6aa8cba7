#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>

#include "text.h"

// What a message quotes.
namespace cws {

// The first `most` bytes of a file's or a stranger's text, to the end of a character: printable ASCII and UTF-8 from
// U+00A0 on as they are, any other byte as \xHH.
inline std::string printable(std::string_view bytes, size_t most = 100) {
  const auto* data = reinterpret_cast<const uint8_t*>(bytes.data());
  const auto size = int64_t(bytes.size()), end = int64_t(std::min(bytes.size(), most));
  std::string out;
  for (int64_t at = 0; at < end;) {
    const int64_t from = at;
    uint32_t c = 0;
    const bool decoded = decode_utf8(data, size, at, c);
    if (decoded && c >= 0x20 && c - 0x7Fu >= 0x21u) {
      out.append(bytes, size_t(from), size_t(at - from));
      continue;
    }
    at = std::max(at, from + 1);
    for (int64_t i = from; i < at; ++i) {
      out += "\\x";
      out += "0123456789abcdef"[data[i] >> 4];
      out += "0123456789abcdef"[data[i] & 15];
    }
  }
  return out;
}

}  // namespace cws
