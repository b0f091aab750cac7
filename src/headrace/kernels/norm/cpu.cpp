// RMSNorm (arXiv:1910.07467), with the residual addition before it in the same pass.
#include "kernel_table.hpp"
#include "vector.hpp"

namespace headrace::HEADRACE_ISA {
namespace {

template <class Delta, class Out>
void normalise_rows(const Norm& call, const Step& step, Worker& worker) {
    const int64_t hidden = call.hidden;
    const int64_t rows = row_count(call.rows, step);
    int64_t row = 0;
    while (worker.take(rows, row)) {
        const int64_t token = call.gathered != nullptr ? call.gathered[row] : row;
        const auto* delta = static_cast<const typename Delta::Storage*>(call.delta);
        float* residual = call.residual + token * hidden;
        auto* out = static_cast<typename Out::Storage*>(call.out) + row * hidden;
        const bool update = delta != nullptr && call.gathered == nullptr;
        Floats squares = zeros();
        for (int64_t i = 0; i < hidden; i += kWidth) {
            Floats x = load_first<Float32>(residual + i, hidden - i);
            if (delta != nullptr) {
                x = add(x, load_first<Delta>(delta + token * hidden + i, hidden - i));
            }
            if (update) store_first<Float32>(residual + i, x, hidden - i);
            squares = fma(x, x, squares);
        }
        const float mean = reduce_add(squares) / static_cast<float>(hidden);
        const Floats inverse = broadcast(1.0f / __builtin_sqrtf(mean + call.eps));
        for (int64_t i = 0; i < hidden; i += kWidth) {
            Floats x = load_first<Float32>(residual + i, hidden - i);
            if (delta != nullptr && !update) {
                x = add(x, load_first<Delta>(delta + token * hidden + i, hidden - i));
            }
            const Floats weight = load_first<Float32>(call.weight + i, hidden - i);
            store_first<Out>(out + i, mul(mul(x, inverse), weight), hidden - i);
        }
    }
}

}  // namespace

void norm(const Norm& call, const Step& step, Worker& worker) {
    const bool wide_delta = call.delta_type == Type::float32;
    if (call.out_type == Type::float32) {
        (wide_delta ? normalise_rows<Float32, Float32> : normalise_rows<BFloat16, Float32>)(
            call, step, worker);
    } else {
        (wide_delta ? normalise_rows<Float32, BFloat16> : normalise_rows<BFloat16, BFloat16>)(
            call, step, worker);
    }
}

}  // namespace headrace::HEADRACE_ISA
