#pragma once

#include <nanobind/nanobind.h>

#include <array>
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
    Word word{};
    uint64_t h = 0;
    for (int64_t i = 0; i < n; ++i) {
      word[i] = points[begin + i] + 1;
      h = (h ^ word[i]) * 0x9E3779B97F4A7C15u;
    }
    Entry& entry = entries_[h >> 51];
    if (entry.word != word) {
      PyObject* made = checked(PyUnicode_Substring(text.ptr(), begin, end));
      Py_XDECREF(entry.text);
      entry.word = word;
      entry.text = made;
    }
    Py_INCREF(entry.text);
    return entry.text;
  }

 private:
  using Word = std::array<uint32_t, 4>;
  struct Entry {
    Word word{};
    PyObject* text = nullptr;
  };

  static PyObject* checked(PyObject* made) {
    if (!made) throw nb::python_error();
    return made;
  }

  std::vector<Entry> entries_ = std::vector<Entry>(1 << 13);
};

// Tokens begin .. end - 1 as a list.
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
