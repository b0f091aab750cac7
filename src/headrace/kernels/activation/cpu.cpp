// SwiGLU's activation (arXiv:2002.05202).
#include "kernel_table.hpp"
#include "vector.hpp"

namespace headrace::HEADRACE_ISA {
namespace {

constexpr int64_t kSegment = 512;

template <class D>
void silu_mul(const Activation& call, const Step& step, Worker& worker) {
    const int64_t width = call.width;
    const int64_t segments = (width + kSegment - 1) / kSegment;
    for (int64_t task = worker.take(1); task < step.tokens * segments; task = worker.take(1)) {
        const int64_t row = task / segments;
        const int64_t first = task % segments * kSegment;
        const int64_t last = first + kSegment < width ? first + kSegment : width;
        const auto* gate = static_cast<const typename D::Storage*>(call.gate_up) + row * 2 * width;
        const auto* up = gate + width;
        auto* out = static_cast<typename D::Storage*>(call.out) + row * width;
        for (int64_t i = first; i < last; i += kWidth) {
            alignas(64) typename D::Storage part[3][kWidth] = {};
            const int64_t count = last - i < kWidth ? last - i : kWidth;
            const bool whole = count == kWidth;
            if (!whole) {
                for (int64_t j = 0; j < count; ++j) {
                    part[0][j] = gate[i + j];
                    part[1][j] = up[i + j];
                }
            }
            const Floats g = D::load_floats(whole ? gate + i : part[0]);
            const Floats u = D::load_floats(whole ? up + i : part[1]);
            const Floats one = broadcast(1.0f);
            const Floats sigmoid = div(one, add(one, exponential(sub(zeros(), g))));
            D::store_floats(whole ? out + i : part[2], mul(mul(g, sigmoid), u));
            if (!whole) {
                for (int64_t j = 0; j < count; ++j) out[i + j] = part[2][j];
            }
        }
    }
}

}  // namespace

void activation(const Activation& call, const Step& step, Worker& worker) {
    (call.type == Type::float32 ? silu_mul<Float32> : silu_mul<BFloat16>)(call, step, worker);
}

}  // namespace headrace::HEADRACE_ISA
