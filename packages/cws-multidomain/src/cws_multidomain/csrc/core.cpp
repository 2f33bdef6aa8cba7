#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_engine(nb::module_& m);
void bind_training(nb::module_& m);
void bind_pkuseg(nb::module_& m);
void bind_jieba(nb::module_& m);
void bind_tagger(nb::module_& m);
void bind_format(nb::module_& m);

namespace {

// The machine code that the loader picks of functions marked CLONES.
const char* vectors() {
#if defined(__x86_64__) && defined(__linux__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("x86-64-v4")) return "AVX-512";
  if (__builtin_cpu_supports("x86-64-v3")) return "AVX2";
#endif
  return "baseline";
}

}  // namespace

NB_MODULE(_core, m) {
  m.def("vectors", vectors);
  bind_engine(m);
  bind_training(m);
  bind_pkuseg(m);
  bind_jieba(m);
  bind_tagger(m);
  bind_format(m);
}
