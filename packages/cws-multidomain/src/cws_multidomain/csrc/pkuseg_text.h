#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

// Text as pkuseg reads it: white space, the classes of characters, UTF-8 with lone surrogates.
namespace pkuseg {

// A character after normalisation: a code point, or one of two classes.
using Node = char32_t;
inline constexpr Node kNumber = 0x110000, kLetter = 0x110001;

// str.isspace of Python.
inline bool is_space(char32_t c) {
  if (c < 0x80) return (c >= 9 && c <= 13) || (c >= 28 && c <= 32);
  return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 ||
         c == 0x202F || c == 0x205F || c == 0x3000;
}

// Punctuation that becomes '&' before anything else; a full stop therefore is never part of a number.
inline char32_t rename(char32_t c) {
  switch (c) {
    case '-':
    case '.':
    case '_':
    case ',':
    case '|':
    case '/':
    case '*':
    case ':':
      return '&';
    default:
      return c;
  }
}

// The class of a renamed character. The quirks are the models': no class for half-width letters, U+4E00, U+767E,
// U+FF4A.
inline Node classify(char32_t c) {
  if (c < 0x80) return c >= '0' && c <= '9' ? kNumber : c;
  if (c < 0x30FB) return c;
  if (c >= 0xFF00) {
    if (c >= 0xFF10 && c <= 0xFF19) return kNumber;
    if (c >= 0xFF21 && c <= 0xFF3A) return kLetter;
    if (c >= 0xFF41 && c <= 0xFF5A) return c == 0xFF4A ? c : kLetter;
    if (c == 0xFF05) return kNumber;
    return c == 0xFF0D || c == 0xFF0F ? kLetter : c;
  }
  switch (c) {
    case 0x30FB:
      return kLetter;
    case U'几':
    case U'二':
    case U'三':
    case U'四':
    case U'五':
    case U'六':
    case U'七':
    case U'八':
    case U'九':
    case U'十':
    case U'千':
    case U'万':
    case U'亿':
    case U'兆':
    case U'零':
      return kNumber;
    default:
      return c;
  }
}

inline Node normalize(char32_t c) { return classify(rename(c)); }

// UTF-8 in which lone surrogates may stand, as Python writes them with "surrogatepass".
inline void decode_utf8(std::string_view bytes, std::u32string& out) {
  out.clear();
  for (size_t i = 0; i < bytes.size();) {
    const auto b = static_cast<unsigned char>(bytes[i]);
    const int more = b < 0x80                ? 0
                     : b >= 0xC2 && b < 0xE0 ? 1
                     : b >= 0xE0 && b < 0xF0 ? 2
                     : b >= 0xF0 && b < 0xF5 ? 3
                                             : -1;
    char32_t c = more == 0 ? b : more == 1 ? b & 31 : more == 2 ? b & 15 : b & 7;
    bool good = more >= 0 && i + more < bytes.size();
    for (int k = 1; good && k <= more; ++k) {
      const auto t = static_cast<unsigned char>(bytes[i + k]);
      good = (t & 0xC0) == 0x80;
      c = c << 6 | (t & 63);
    }
    if (!good || (more == 2 && c < 0x800) || (more == 3 && (c < 0x10000 || c > 0x10FFFF)))
      throw std::invalid_argument("a string is not UTF-8");
    out.push_back(c);
    i += more + 1;
  }
}

inline void encode_utf8(char32_t c, std::string& out) {
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else if (c < 0x800) {
    out += static_cast<char>(0xC0 | c >> 6);
    out += static_cast<char>(0x80 | (c & 63));
  } else if (c < 0x10000) {
    out += static_cast<char>(0xE0 | c >> 12);
    out += static_cast<char>(0x80 | (c >> 6 & 63));
    out += static_cast<char>(0x80 | (c & 63));
  } else {
    out += static_cast<char>(0xF0 | c >> 18);
    out += static_cast<char>(0x80 | (c >> 12 & 63));
    out += static_cast<char>(0x80 | (c >> 6 & 63));
    out += static_cast<char>(0x80 | (c & 63));
  }
}

inline void encode_node(Node node, std::string& out) {
  if (node == kNumber) {
    out += "**Num";
  } else if (node == kLetter) {
    out += "**Letter";
  } else {
    encode_utf8(node, out);
  }
}

// The node whose name begins at `at`, with `at` moved behind it; false if no text ever gives such a node.
inline bool read_node(std::u32string_view name, size_t& at, Node& node) {
  if (at >= name.size()) return false;
  const auto rest = name.substr(at);
  if (rest[0] == '*') {
    const bool number = rest.substr(0, 5) == U"**Num", letter = rest.substr(0, 8) == U"**Letter";
    node = number ? kNumber : kLetter;
    at += number ? 5 : 8;
    return number || letter;
  }
  node = rest[0];
  ++at;
  return normalize(node) == node;
}

// A word as nodes; false if no text ever gives it.
inline bool read_nodes(std::u32string_view name, std::u32string& nodes) {
  nodes.clear();
  Node node;
  for (size_t at = 0; at < name.size();) {
    if (!read_node(name, at, node)) return false;
    nodes.push_back(node);
  }
  return true;
}

}  // namespace pkuseg
