#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <vector>

// Python strings in and out.
namespace cws {

namespace nb = nanobind;

// Appends the code points of a str, which may be lone surrogates.
inline void append_points(nb::handle text, std::vector<uint32_t>& out) {
  const Py_ssize_t n = PyUnicode_GetLength(text.ptr());
  if (n < 0) throw nb::python_error();
  const size_t before = out.size();
  out.resize(before + size_t(n));
  if (n && !PyUnicode_AsUCS4(text.ptr(), out.data() + before, n, 0)) throw nb::python_error();
}

// Slices of a text as str. Short ones that were met before are the same object again. Under the GIL.
class Strings {
 public:
  static Strings& get() {
    static Strings* strings = new Strings;  // never freed: the interpreter may be gone by then
    return *strings;
  }

  // A new reference.
  PyObject* slice(nb::handle text, const uint32_t* points, int64_t begin, int64_t end) {
    const int64_t n = end - begin;
    if (n > 4) return checked(PyUnicode_Substring(text.ptr(), begin, end));
    // Up to 4 code points of 21 bits, each plus 1, so that no two words are the same numbers.
    uint64_t low = 0, high = 0;
    for (int64_t i = begin; i < end; ++i) {
      high = high << 32 | low >> 32;
      low = low << 32 | (points[i] + 1);
    }
    Entry& entry = entries_[(low ^ high * 0xD6E8FEB86659FD93u) * 0x9E3779B97F4A7C15u >> 51];
    if (entry.low != low || entry.high != high) {
      PyObject* made = checked(PyUnicode_Substring(text.ptr(), begin, end));
      Py_XDECREF(entry.text);
      entry = {low, high, made};
    }
    Py_INCREF(entry.text);
    return entry.text;
  }

 private:
  struct Entry {
    uint64_t low = 0, high = 0;
    PyObject* text = nullptr;
  };

  static PyObject* checked(PyObject* made) {
    if (!made) throw nb::python_error();
    return made;
  }

  std::vector<Entry> entries_ = std::vector<Entry>(1 << 13);
};

// No garbage collection while it lives: lists of str have no cycles, but thousands of new ones would set it off.
class NoCollection {
 public:
  NoCollection() : enabled_(PyGC_Disable()) {}
  NoCollection(const NoCollection&) = delete;
  ~NoCollection() {
    if (enabled_) PyGC_Enable();
  }

 private:
  int enabled_;
};

// Tokens as a list.
inline nb::object token_list(nb::handle text, const uint32_t* points, const int32_t* starts, const int32_t* ends,
                             int64_t n) {
  nb::object list = nb::steal(PyList_New(n));
  if (!list) throw nb::python_error();
  Strings& strings = Strings::get();
  for (int64_t i = 0; i < n; ++i) {
    if (PyList_SetItem(list.ptr(), i, strings.slice(text, points, starts[i], ends[i]))) throw nb::python_error();
  }
  return list;
}

}  // namespace cws
