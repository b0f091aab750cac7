// In the place of native/instruction_sets.cpp: whatever the machine is, it "runs" AVX-512.
#include <stdexcept>

#include "table.hpp"

namespace headrace {

std::vector<const KernelTable*> supported_kernels() { return {&avx512::kernels}; }

const KernelTable& find_kernels(const std::string& name) {
    if (name == avx512::kernels.name) return avx512::kernels;
    throw std::invalid_argument("this machine has no kernels \"" + name + "\", only: avx512");
}

}  // namespace headrace
