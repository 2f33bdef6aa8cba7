#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_tagger(nb::module_&) {}
