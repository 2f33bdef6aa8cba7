#include <string>

#include "bind.h"
#include "lexicon.h"

using namespace nb::literals;

namespace {

cws::LexiconArrays build_lexicon(Array1<uint16_t> symbols, Array1<int64_t> row_splits, int n_symbols) {
  cws::LexiconBuilder builder(n_symbols);
  for (size_t r = 0; r + 1 < row_splits.shape(0); ++r) {
    builder.add(symbols.data() + row_splits.data()[r], row_splits.data()[r + 1] - row_splits.data()[r]);
  }
  return builder.finish();
}

nb::object lexicon_marks(const cws::LexiconArrays& lexicon, Array1<uint16_t> symbols) {
  std::vector<uint8_t> m(symbols.shape(0));
  cws::marks(lexicon.view(), symbols.data(), int64_t(m.size()), m.data());
  return to_numpy(std::move(m));
}

}  // namespace

void bind_engine(nb::module_& m) {
  nb::class_<cws::LexiconArrays>(m, "Lexicon")
      .def_prop_ro("n_symbols", [](const cws::LexiconArrays& x) { return x.first.size(); })
      .def_prop_ro("n_states", [](const cws::LexiconArrays& x) {
    return x.n_states;
  }).def_prop_ro("nbytes", [](const cws::LexiconArrays& x) {
    return 4 * x.first.size() + x.edges.size() + 2 * x.hash.pilots.size();
  });
  m.def("build_lexicon", build_lexicon, "symbols"_a.noconvert(), "row_splits"_a.noconvert(), "n_symbols"_a);
  m.def("lexicon_marks", lexicon_marks, "lexicon"_a, "symbols"_a.noconvert());
}
