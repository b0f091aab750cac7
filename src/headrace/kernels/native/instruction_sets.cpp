#include "table.hpp"

#include <stdexcept>

namespace headrace {

std::vector<const KernelTable*> supported_kernels() {
    std::vector<const KernelTable*> tables;
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
    if (avx512 && __builtin_cpu_supports("avx512bf16")) tables.push_back(&avx512_bf16::kernels);
    if (avx512) tables.push_back(&avx512::kernels);
    if (avx2) tables.push_back(&avx2::kernels);
    return tables;
}

const KernelTable& find_kernels(const std::string& name) {
    std::string names;
    for (const KernelTable* table : supported_kernels()) {
        if (name == table->name) return *table;
        names += std::string(names.empty() ? "" : ", ") + table->name;
    }
    throw std::invalid_argument("this machine has no kernels \"" + name + "\", only: " +
                                (names.empty() ? "none" : names));
}

}  // namespace headrace
