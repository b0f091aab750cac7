// SwiGLU's activation (arXiv:2002.05202).
#include "kernel_table.hpp"
#include "vector.hpp"

namespace headrace::HEADRACE_ISA {
namespace {

constexpr int64_t kSegment = 512;

template <class D>
void activate(const Activation& call, const Step& step, Worker& worker) {
    const int64_t width = call.width;
    const int64_t segments = (width + kSegment - 1) / kSegment;
    int64_t task = 0;
    while (worker.take(row_count(call.rows, step) * segments, task)) {
        const int64_t row = task / segments;
        const int64_t first = task % segments * kSegment;
        const int64_t last = first + kSegment < width ? first + kSegment : width;
        const auto* gate = static_cast<const typename D::Storage*>(call.gate_up) + row * 2 * width;
        const auto* up = gate + width;
        auto* out = static_cast<typename D::Storage*>(call.out) + row * width;
        for (int64_t i = first; i < last; i += kWidth) {
            Floats g[] = {load_first<D>(gate + i, last - i)};
            silu_mul(g, {load_first<D>(up + i, last - i)});
            store_first<D>(out + i, g[0], last - i);
        }
    }
}

}  // namespace

void activation(const Activation& call, const Step& step, Worker& worker) {
    (call.type == Type::float32 ? activate<Float32> : activate<BFloat16>)(call, step, worker);
}

}  // namespace headrace::HEADRACE_ISA
