#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_pkuseg(nb::module_&) {}
