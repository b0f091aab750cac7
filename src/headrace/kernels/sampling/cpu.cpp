// The most likely token of each row of logits and its log-probability, in one pass.
#include "kernel_table.hpp"
#include "vector.hpp"

namespace headrace::HEADRACE_ISA {

void greedy(const Greedy& call, Worker& worker) {
    for (int64_t row = worker.take(1); row < call.rows; row = worker.take(1)) {
        const float* logits = call.logits + row * call.vocab;
        Floats largest = broadcast(-__builtin_inff());
        const int64_t whole = call.vocab / kWidth * kWidth;
        for (int64_t i = 0; i < whole; i += kWidth) largest = maximum(largest, load(logits + i));
        float best = reduce_max(largest);
        for (int64_t i = whole; i < call.vocab; ++i) best = logits[i] > best ? logits[i] : best;
        int64_t token = 0;
        while (token < call.vocab - 1 && !(logits[token] == best)) ++token;
        call.token[row] = static_cast<int32_t>(token);
        if (call.logprob == nullptr) continue;
        Floats sums = zeros();
        for (int64_t i = 0; i < whole; i += kWidth) {
            sums = add(sums, exponential(sub(load(logits + i), broadcast(best))));
        }
        float sum = reduce_add(sums);
        for (int64_t i = whole; i < call.vocab; ++i) {
            sum += __builtin_expf(logits[i] - best);
        }
        call.logprob[row] = -__builtin_logf(sum);
    }
}

}  // namespace headrace::HEADRACE_ISA
