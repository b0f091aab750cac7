// In the place of native/instruction_sets.cpp: whatever the machine is, it "runs" AVX-512.
#include "table.hpp"

namespace headrace {

std::vector<const KernelTable*> supported_kernels() { return {&avx512::kernels}; }

}  // namespace headrace
