// Which kernels exist, and which of them this machine can run.
#pragma once

#include <string>
#include <vector>

#include "kernel_table.hpp"

namespace headrace {

namespace avx2 {
extern const KernelTable kernels;
}
namespace avx512 {
extern const KernelTable kernels;
}
namespace avx512_bf16 {
extern const KernelTable kernels;
}

// Tables that the machine can run, the fastest first; empty below AVX2 with FMA and F16C.
std::vector<const KernelTable*> supported_kernels();

// The one of that name; throws std::invalid_argument where the machine cannot run it.
const KernelTable& find_kernels(const std::string& name);

}  // namespace headrace
