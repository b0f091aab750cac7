// The most likely token of each row of logits, its logit and its log-probability.
#include "kernel_table.hpp"
#include "vector.hpp"

namespace headrace::HEADRACE_ISA {
namespace {

constexpr int64_t kSegment = 1024;
constexpr uint32_t kInfinity = 0x7f800000;

struct Peak {
    float value;  // NaN where any logit is
    int64_t token;
};

Peak find_peak(const float* logits, int64_t vocab) {
    Peak peak{-__builtin_inff(), 0};
    const Ints absolute_bits = broadcast_int(0x7fffffff);
    Ints magnitude = broadcast_int(0);
    int64_t segment = 0;
    for (int64_t first = 0; first < vocab; first += kSegment) {
        const int64_t last = first + kSegment < vocab ? first + kSegment : vocab;
        Floats largest = broadcast(-__builtin_inff());
        int64_t i = first;
        for (; i + kWidth <= last; i += kWidth) {
            const Floats value = load(logits + i);
            largest = maximum(largest, value);
            magnitude = max_ints(magnitude, bits_and(as_ints(value), absolute_bits));
        }
        float best = reduce_max(largest);
        for (; i < last; ++i) {
            if (logits[i] != logits[i]) return {logits[i], i};
            best = logits[i] > best ? logits[i] : best;
        }
        if (best > peak.value) {
            peak.value = best;
            segment = first;
        }
    }
    // As bits, a NaN of either sign is above infinity.
    if (static_cast<uint32_t>(reduce_max_ints(magnitude)) > kInfinity) {
        return {__builtin_nanf(""), 0};
    }
    peak.token = segment;
    while (peak.token < vocab - 1 && logits[peak.token] != peak.value) ++peak.token;
    return peak;
}

// log of the sum of exp(logit - peak), of at least 1.
float log_total(const float* logits, int64_t vocab, float peak) {
    Floats sums = zeros();
    for (int64_t i = 0; i < vocab; i += kWidth) {
        const int64_t left = vocab - i;
        alignas(64) float part[kWidth];
        if (left < kWidth) {
            for (int64_t j = 0; j < kWidth; ++j) {
                part[j] = j < left ? logits[i + j] : -__builtin_inff();
            }
        }
        const Floats value = load(left < kWidth ? part : logits + i);
        sums = add(sums, exponential(sub(value, broadcast(peak))));
    }
    return __builtin_logf(reduce_add(sums));
}

}  // namespace

void greedy(const Greedy& call, Worker& worker) {
    int64_t row = 0;
    while (worker.take(call.rows, row)) {
        const float* logits = call.logits + row * call.vocab;
        const Peak peak = find_peak(logits, call.vocab);
        call.token[row] = static_cast<int32_t>(peak.token);
        call.peak[row] = peak.value;
        if (call.logprob != nullptr) {
            call.logprob[row] = -log_total(logits, call.vocab, peak.value);
        }
    }
}

}  // namespace headrace::HEADRACE_ISA
