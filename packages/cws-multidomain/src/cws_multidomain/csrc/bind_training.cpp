#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_training(nb::module_&) {}
