#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <string_view>

#include "format.h"

namespace nb = nanobind;

namespace {

template <class T>
using Indices = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// The lines of a text with their tokens, in one of the command line's formats.
nb::bytes format_rows(nb::bytes text, Indices<int32_t> starts, Indices<int32_t> ends, Indices<int64_t> row_splits,
                      int style, int unit) {
  format::Writer writer(static_cast<format::Style>(style), static_cast<format::Unit>(unit));
  const std::string_view all(static_cast<const char*>(text.data()), text.size());
  {
    const nb::gil_scoped_release released;
    size_t at = 0;
    for (size_t r = 0; r + 1 < row_splits.shape(0); ++r) {
      const size_t end = std::min(all.find('\n', at), all.size());
      const int64_t first = row_splits.data()[r];
      writer.row(all.substr(at, end - at), starts.data() + first, ends.data() + first,
                 row_splits.data()[r + 1] - first);
      at = std::min(end + 1, all.size());
    }
  }
  return nb::bytes(writer.view().data(), writer.view().size());
}

// Pieces of a buffer, one after the other.
nb::bytes join(Indices<uint8_t> data, Indices<int64_t> starts, Indices<int64_t> ends) {
  format::Bytes out;
  {
    const nb::gil_scoped_release released;
    const std::string_view all(reinterpret_cast<const char*>(data.data()), data.size());
    for (size_t i = 0; i < starts.shape(0); ++i) {
      out.put(all.substr(size_t(starts.data()[i]), size_t(ends.data()[i] - starts.data()[i])));
    }
  }
  return nb::bytes(out.view().data(), out.view().size());
}

}  // namespace

void bind_format(nb::module_& m) {
  m.def("format_rows", format_rows, nb::arg("text"), nb::arg("starts").noconvert(), nb::arg("ends").noconvert(),
        nb::arg("row_splits").noconvert(), nb::arg("style"), nb::arg("unit"));
  m.def("join", join, nb::arg("data").noconvert(), nb::arg("starts").noconvert(), nb::arg("ends").noconvert());
}
