#pragma once

#include <bit>
#include <charconv>
#include <cstdint>
#include <cstring>
#include <deque>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "pkuseg_text.h"
#include "printable.h"

// Plain values of hostile files: pickles and MessagePack. Only dict, list, set, str, int, bool and float are
// understood; a pickle's virtual machine is run without any way to name, import or call something.
namespace pkuseg {

struct Value {
  enum Kind : uint8_t { kBool, kInt, kFloat, kString, kList, kSet, kDict, kTuple, kSetType, kMark };
  Kind kind;
  union {
    int64_t integer;
    double real;
    struct {
      const char* data;
      size_t size;
    } text;
    std::vector<Value*>* items;  // a dict's keys and values take turns
  };

  std::string_view string() const { return {text.data, text.size}; }
  const char* type() const {
    static constexpr const char* kNames[] = {"bool", "int",  "float", "str",  "list",
                                             "set",  "dict", "tuple", "type", "mark"};
    return kNames[kind];
  }
};

[[noreturn]] inline void bad(const std::string& message) { throw std::invalid_argument(message); }

// Values and what they own. Strings may point into the bytes that were read.
class Arena {
 public:
  Value* make(Value::Kind kind) {
    values_.emplace_back();
    Value* value = &values_.back();
    value->kind = kind;
    value->text = {nullptr, 0};
    if (kind >= Value::kList && kind <= Value::kTuple) value->items = &lists_.emplace_back();
    return value;
  }
  Value* integer(int64_t i, Value::Kind kind = Value::kInt) {
    Value* value = make(kind);
    value->integer = i;
    return value;
  }
  Value* real(double d) {
    Value* value = make(Value::kFloat);
    value->real = d;
    return value;
  }
  Value* string(std::string_view s) {
    Value* value = make(Value::kString);
    value->text = {s.data(), s.size()};
    return value;
  }
  std::string& keep() { return strings_.emplace_back(); }

 private:
  std::deque<Value> values_;
  std::deque<std::vector<Value*>> lists_;
  std::deque<std::string> strings_;
};

class Bytes {
 public:
  explicit Bytes(std::string_view bytes) : bytes_(bytes) {}
  std::string_view take(uint64_t n) {
    if (n > bytes_.size() - at_) bad("the file is truncated at byte " + std::to_string(bytes_.size()));
    at_ += n;
    return bytes_.substr(at_ - n, n);
  }
  uint64_t little(int n) {
    const auto s = take(n);
    uint64_t u = 0;
    for (int k = n; k-- > 0;) u = u << 8 | static_cast<unsigned char>(s[k]);
    return u;
  }
  uint64_t big(int n) {
    uint64_t u = 0;
    for (char c : take(n)) u = u << 8 | static_cast<unsigned char>(c);
    return u;
  }
  std::string_view line() {
    const size_t end = bytes_.find('\n', at_);
    if (end == std::string_view::npos) bad("the file is truncated at byte " + std::to_string(bytes_.size()));
    const auto s = take(end - at_);
    ++at_;
    return s;
  }
  size_t left() const { return bytes_.size() - at_; }
  size_t at() const { return at_; }

 private:
  std::string_view bytes_;
  size_t at_ = 0;
};

class Pickle {
 public:
  static Value* read(std::string_view bytes, Arena& arena) { return Pickle(bytes, arena).run(); }

 private:
  Pickle(std::string_view bytes, Arena& arena) : in_(bytes), arena_(arena) {}

  Value* run() {
    for (;;) {
      const auto op = static_cast<unsigned char>(in_.take(1)[0]);
      switch (op) {
        case 0x80:  // PROTO
          if (in_.little(1) > 5) bad("the pickle's protocol is newer than 5");
          break;
        case 0x95:  // FRAME
          in_.take(8);
          break;
        case '.':
          return data(pop());
        case '(':
          push(arena_.make(Value::kMark));
          break;
        case '0':
          pop();
          break;
        case '1':
          stack_.resize(mark());
          break;
        case '}':
          push(arena_.make(Value::kDict));
          break;
        case ']':
          push(arena_.make(Value::kList));
          break;
        case ')':
          push(arena_.make(Value::kTuple));
          break;
        case 0x8f:  // EMPTY_SET
          push(arena_.make(Value::kSet));
          break;
        case 'd':
          collect(Value::kDict);
          break;
        case 'l':
          collect(Value::kList);
          break;
        case 't':
          collect(Value::kTuple);
          break;
        case 0x85:  // TUPLE1 to TUPLE3
        case 0x86:
        case 0x87: {
          const size_t n = op - 0x84;
          if (stack_.size() < n) malformed();
          tuple(stack_.size() - n, stack_.size() - n, Value::kTuple);
          break;
        }
        case 'a': {
          Value* item = data(pop());
          top(Value::kList).items->push_back(item);
          break;
        }
        case 's': {
          Value* value = data(pop());
          Value* key = data(pop());
          auto& items = *top(Value::kDict).items;
          items.push_back(key);
          items.push_back(value);
          break;
        }
        case 'e':
          extend(Value::kList);
          break;
        case 'u':
          extend(Value::kDict);
          break;
        case 0x90:  // ADDITEMS
          extend(Value::kSet);
          break;
        case 'X':
          push(text(in_.take(in_.little(4))));
          break;
        case 0x8c:  // SHORT_BINUNICODE
          push(text(in_.take(in_.little(1))));
          break;
        case 0x8d:  // BINUNICODE8
          push(text(in_.take(in_.little(8))));
          break;
        case 'V':
          push(text(escaped(in_.line())));
          break;
        case 'J':
          push(arena_.integer(static_cast<int32_t>(in_.little(4))));
          break;
        case 'K':
          push(arena_.integer(static_cast<int64_t>(in_.little(1))));
          break;
        case 'M':
          push(arena_.integer(static_cast<int64_t>(in_.little(2))));
          break;
        case 'I': {
          const auto s = in_.line();
          const bool logical = s == "00" || s == "01";
          push(arena_.integer(number(s), logical ? Value::kBool : Value::kInt));
          break;
        }
        case 'L': {
          auto s = in_.line();
          if (s.ends_with('L')) s.remove_suffix(1);
          push(arena_.integer(number(s)));
          break;
        }
        case 0x8a:  // LONG1
          push(arena_.integer(big_integer(in_.little(1))));
          break;
        case 0x8b:  // LONG4
          push(arena_.integer(big_integer(in_.little(4))));
          break;
        case 'F': {
          const auto s = in_.line();
          double d = 0;
          const auto [end, error] = std::from_chars(s.data(), s.data() + s.size(), d);
          if (error != std::errc() || end != s.data() + s.size()) malformed();
          push(arena_.real(d));
          break;
        }
        case 'G':
          push(arena_.real(std::bit_cast<double>(in_.big(8))));
          break;
        case 0x88:
        case 0x89:  // NEWTRUE, NEWFALSE
          push(arena_.integer(op == 0x88, Value::kBool));
          break;
        case 0x94:  // MEMOIZE
          remember(memo_.size());
          break;
        case 'p':
          remember(static_cast<uint64_t>(number(in_.line())));
          break;
        case 'q':
          remember(in_.little(1));
          break;
        case 'r':
          remember(in_.little(4));
          break;
        case 'g':
          recall(static_cast<uint64_t>(number(in_.line())));
          break;
        case 'h':
          recall(in_.little(1));
          break;
        case 'j':
          recall(in_.little(4));
          break;
        case 'c': {
          const auto module = in_.line(), name = in_.line();
          global(module, name);
          break;
        }
        case 0x93: {  // STACK_GLOBAL
          Value* name = pop();
          Value* module = pop();
          if (name->kind != Value::kString || module->kind != Value::kString) malformed();
          global(module->string(), name->string());
          break;
        }
        case 'i': {
          const auto module = in_.line(), name = in_.line();
          forbidden(module, name);
        }
        case 'R': {  // of the only callable there can be, set
          Value* arguments = pop();
          Value* callable = pop();
          if (callable->kind != Value::kSetType || arguments->kind != Value::kTuple || arguments->items->size() > 1)
            malformed();
          Value* made = arena_.make(Value::kSet);
          if (!arguments->items->empty()) {
            const Value* from = (*arguments->items)[0];
            if (from->kind != Value::kList && from->kind != Value::kSet) malformed();
            *made->items = *from->items;
          }
          push(made);
          break;
        }
        case 'N':
          forbidden("builtins", "NoneType");
        case 0x91:
          forbidden("builtins", "frozenset");
        case 'B':
        case 'C':
        case 0x8e:
          forbidden("builtins", "bytes");
        case 0x96:
          forbidden("builtins", "bytearray");
        case 'S':
        case 'T':
        case 'U':
          forbidden("__builtin__", "str of Python 2");
        case 0x82:
        case 0x83:
        case 0x84:
          forbidden("copyreg", "extension");
        case 'P':
        case 'Q':
          forbidden("pickle", "persistent object");
        default:
          bad("the pickle uses operation " + std::to_string(op) + " at byte " + std::to_string(in_.at() - 1) +
              ", of which no plain dict, list, set, str, int or float has need");
      }
    }
  }

  [[noreturn]] void malformed() { bad("the pickle is malformed before byte " + std::to_string(in_.at())); }
  [[noreturn]] static void forbidden(std::string_view module, std::string_view name) {
    bad("the pickle asks for " + cws::printable(module) + "." + cws::printable(name) +
        "; only dict, list, set, str, int and float are read");
  }
  void global(std::string_view module, std::string_view name) {
    if (name != "set" || (module != "builtins" && module != "__builtin__")) forbidden(module, name);
    push(arena_.make(Value::kSetType));
  }
  void push(Value* value) { stack_.push_back(value); }
  Value* pop() {
    if (stack_.empty()) malformed();
    Value* value = stack_.back();
    stack_.pop_back();
    return value;
  }
  // What may stand in data: anything but a mark, a tuple and the type `set`.
  Value* data(Value* value) {
    if (value->kind == Value::kTuple) forbidden("builtins", "tuple");
    if (value->kind > Value::kTuple) malformed();
    return value;
  }
  Value& top(Value::Kind kind) {
    if (stack_.empty() || stack_.back()->kind != kind) malformed();
    return *stack_.back();
  }
  size_t mark() {
    size_t i = stack_.size();
    while (i && stack_[i - 1]->kind != Value::kMark) --i;
    if (!i) malformed();
    return i - 1;
  }
  void collect(Value::Kind kind) {
    const size_t m = mark();
    tuple(m + 1, m, kind);
  }
  void tuple(size_t from, size_t to, Value::Kind kind) {
    Value* made = arena_.make(kind);
    made->items->assign(stack_.begin() + from, stack_.end());
    if (kind != Value::kTuple)
      for (Value* item : *made->items) data(item);
    if (kind == Value::kDict && made->items->size() % 2) malformed();
    stack_.resize(to);
    push(made);
  }
  void extend(Value::Kind kind) {
    const size_t m = mark();
    if (!m || stack_[m - 1]->kind != kind) malformed();
    if (kind == Value::kDict && (stack_.size() - m - 1) % 2) malformed();
    auto& items = *stack_[m - 1]->items;
    for (size_t i = m + 1; i < stack_.size(); ++i) items.push_back(data(stack_[i]));
    stack_.resize(m);
  }
  void remember(uint64_t at) {
    if (stack_.empty() || stack_.back()->kind == Value::kMark) malformed();
    if (at > 2 * memo_.size() + 65536) malformed();
    if (at >= memo_.size()) memo_.resize(at + 1);
    memo_[at] = stack_.back();
  }
  void recall(uint64_t at) {
    if (at >= memo_.size() || !memo_[at]) malformed();
    push(memo_[at]);
  }
  Value* text(std::string_view s) { return arena_.string(s); }
  int64_t number(std::string_view s) {
    int64_t i = 0;
    const auto [end, error] = std::from_chars(s.data(), s.data() + s.size(), i);
    if (error != std::errc() || end != s.data() + s.size()) malformed();
    return i;
  }
  int64_t big_integer(uint64_t n) {
    if (n > 8) bad("the pickle has an integer of more than 64 bits");
    if (!n) return 0;
    const uint64_t u = in_.little(static_cast<int>(n)) << (64 - 8 * n);
    return static_cast<int64_t>(u) >> (64 - 8 * n);
  }
  // Protocol 0 writes strings in Latin-1 with \u and \U.
  std::string_view escaped(std::string_view s) {
    std::string& out = arena_.keep();
    for (size_t i = 0; i < s.size(); ++i) {
      const int digits = s[i] != '\\' || i + 1 == s.size() ? 0 : s[i + 1] == 'u' ? 4 : s[i + 1] == 'U' ? 8 : 0;
      if (!digits) {
        encode_utf8(static_cast<unsigned char>(s[i]), out);
        continue;
      }
      uint32_t c = 0;
      const auto hex = s.substr(i + 2, digits);
      const auto [end, error] = std::from_chars(hex.data(), hex.data() + hex.size(), c, 16);
      if (error != std::errc() || end != hex.data() + digits || c > 0x10FFFF) malformed();
      encode_utf8(c, out);
      i += 1 + digits;
    }
    return out;
  }

  Bytes in_;
  Arena& arena_;
  std::vector<Value*> stack_, memo_;
};

class MessagePack {
 public:
  static Value* read(std::string_view bytes, Arena& arena) {
    MessagePack reader(bytes, arena);
    Value* value = reader.value(0);
    if (reader.in_.left()) bad("bytes follow the value, from byte " + std::to_string(reader.in_.at()));
    return value;
  }

  static void write(uint64_t i, std::string& out) {
    if (i < 128) {
      out += static_cast<char>(i);
    } else {
      head(i, 0xCC, 0xCD, 0xCE, out);
    }
  }
  static void write(std::string_view s, std::string& out) {
    if (s.size() < 32) {
      out += static_cast<char>(0xA0 | s.size());
    } else {
      head(s.size(), 0xD9, 0xDA, 0xDB, out);
    }
    out += s;
  }
  static void list(size_t n, std::string& out) {
    if (n < 16) {
      out += static_cast<char>(0x90 | n);
    } else {
      head(n, 0, 0xDC, 0xDD, out);
    }
  }
  static void map(size_t n, std::string& out) {
    if (n < 16) {
      out += static_cast<char>(0x80 | n);
    } else {
      head(n, 0, 0xDE, 0xDF, out);
    }
  }

 private:
  MessagePack(std::string_view bytes, Arena& arena) : in_(bytes), arena_(arena) {}

  static void head(uint64_t n, int one, int two, int four, std::string& out) {
    const int size = one && n < 256 ? 1 : n < 65536 ? 2 : 4;
    if (n >> 32) bad("more than 2^32 - 1 items do not fit MessagePack");
    out += static_cast<char>(size == 1 ? one : size == 2 ? two : four);
    for (int k = size; k-- > 0;) out += static_cast<char>(n >> 8 * k);
  }

  Value* value(int depth) {
    if (depth > 32) bad("the file nests deeper than 32 levels");
    const auto b = static_cast<unsigned char>(in_.take(1)[0]);
    if (b < 0x80) return arena_.integer(b);
    if (b >= 0xE0) return arena_.integer(static_cast<int8_t>(b));
    if (b < 0x90) return items(Value::kDict, b & 15, depth);
    if (b < 0xA0) return items(Value::kList, b & 15, depth);
    if (b < 0xC0) return arena_.string(in_.take(b & 31));
    switch (b) {
      case 0xC2:
      case 0xC3:
        return arena_.integer(b & 1, Value::kBool);
      case 0xCA:
        return arena_.real(std::bit_cast<float>(static_cast<uint32_t>(in_.big(4))));
      case 0xCB:
        return arena_.real(std::bit_cast<double>(in_.big(8)));
      case 0xCC:
      case 0xCD:
      case 0xCE:
      case 0xCF: {
        const uint64_t u = in_.big(1 << (b - 0xCC));
        if (u >> 63) bad("an integer has more than 63 bits");
        return arena_.integer(static_cast<int64_t>(u));
      }
      case 0xD0:
        return arena_.integer(static_cast<int8_t>(in_.big(1)));
      case 0xD1:
        return arena_.integer(static_cast<int16_t>(in_.big(2)));
      case 0xD2:
        return arena_.integer(static_cast<int32_t>(in_.big(4)));
      case 0xD3:
        return arena_.integer(static_cast<int64_t>(in_.big(8)));
      case 0xD9:
      case 0xDA:
      case 0xDB:
        return arena_.string(in_.take(in_.big(1 << (b - 0xD9))));
      case 0xDC:
      case 0xDD:
        return items(Value::kList, in_.big(b == 0xDC ? 2 : 4), depth);
      case 0xDE:
      case 0xDF:
        return items(Value::kDict, in_.big(b == 0xDE ? 2 : 4), depth);
      default:
        bad("byte " + std::to_string(in_.at() - 1) + " begins a value (type " + std::to_string(b) +
            ") other than dict, list, str, int, bool or float");
    }
  }
  Value* items(Value::Kind kind, uint64_t n, int depth) {
    if (kind == Value::kDict) n *= 2;
    if (n > in_.left()) bad("the file is truncated");
    Value* made = arena_.make(kind);
    made->items->reserve(n);
    while (n--) made->items->push_back(value(depth + 1));
    return made;
  }

  Bytes in_;
  Arena& arena_;
};

// The vocabulary of a model as its file names it; views into the file.
struct Names {
  std::vector<std::string_view> unigram, bigram;
  std::vector<std::pair<std::string_view, int64_t>> features, tags;
};

inline Names read_names(const Value* root, bool words) {
  if (root->kind != Value::kDict) bad(std::string("the file must hold a dict, got ") + root->type());
  const auto member = [&](std::string_view key) -> const Value& {
    const Value* found = nullptr;
    for (size_t i = 0; i < root->items->size(); i += 2)
      if ((*root->items)[i]->kind == Value::kString && (*root->items)[i]->string() == key)
        found = (*root->items)[i + 1];
    if (!found) bad("'" + std::string(key) + "' is missing");
    return *found;
  };
  const auto strings = [&](std::string_view key, std::vector<std::string_view>& out) {
    const Value& list = member(key);
    if (list.kind != Value::kList && list.kind != Value::kSet)
      bad("'" + std::string(key) + "' must be a list or set of str, got " + list.type());
    for (const Value* item : *list.items) {
      if (item->kind != Value::kString) bad("'" + std::string(key) + "' must hold only str, got " + item->type());
      out.push_back(item->string());
    }
  };
  const auto numbers = [&](std::string_view key, std::vector<std::pair<std::string_view, int64_t>>& out) {
    const Value& dict = member(key);
    if (dict.kind != Value::kDict) bad("'" + std::string(key) + "' must be a dict, got " + dict.type());
    for (size_t i = 0; i < dict.items->size(); i += 2) {
      const Value *name = (*dict.items)[i], *index = (*dict.items)[i + 1];
      if (name->kind != Value::kString || index->kind != Value::kInt)
        bad("'" + std::string(key) + "' must map str to int, got " + name->type() + " to " + index->type());
      out.emplace_back(name->string(), index->integer);
    }
  };
  Names names;
  if (words) {
    strings("unigram", names.unigram);
    strings("bigram", names.bigram);
  }
  numbers("feature_to_idx", names.features);
  numbers("tag_to_idx", names.tags);
  return names;
}

// Every index once, from 0 on.
inline void check_indices(const std::vector<std::pair<std::string_view, int64_t>>& names, int64_t size,
                          const std::string& key) {
  if (static_cast<int64_t>(names.size()) != size)
    bad("'" + key + "' has " + std::to_string(names.size()) + " entries, weights.npz has " + std::to_string(size));
  std::vector<bool> seen(size);
  for (const auto& [name, index] : names) {
    if (index < 0 || index >= size || seen[index])
      bad("'" + key + "' must number its entries 0 to " + std::to_string(size - 1) + ", each once, got " +
          std::to_string(index) + " for '" + cws::printable(name) + "'");
    seen[index] = true;
  }
}

}  // namespace pkuseg
