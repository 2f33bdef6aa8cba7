#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_jieba(nb::module_&) {}
