// Sampling for Python: kernels that run apart from programs.
#pragma once

#include <nanobind/nanobind.h>

namespace headrace {

void bind_sampling(nanobind::module_& module);

}  // namespace headrace
