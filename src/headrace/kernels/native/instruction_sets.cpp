#include "table.hpp"

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

}  // namespace headrace
