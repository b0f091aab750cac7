#include "table.hpp"

#include <stdexcept>

namespace headrace {

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
