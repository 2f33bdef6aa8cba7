#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_corpus(nb::module_& m);
void bind_engine(nb::module_& m);

namespace {

// The widest instructions for which there are kernels and that this machine has.
const char* vectors() {
#if defined(__x86_64__) && defined(__linux__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("x86-64-v4")) return "avx512";
  if (__builtin_cpu_supports("x86-64-v3")) return "avx2";
#endif
  return "scalar";
}

}  // namespace

NB_MODULE(_core, m) {
  m.def("vectors", vectors);
  bind_corpus(m);
  bind_engine(m);
}
