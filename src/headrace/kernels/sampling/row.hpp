// Passes over one row of logits that its readers share.
#pragma once

#include "vector.hpp"

namespace headrace::HEADRACE_ISA {

struct Peak {
    float value;  // NaN where any logit is
    int64_t token;
};

// The greatest logit and the first token that has it.
Peak find_peak(const float* logits, int64_t vocab);

// log of the sum of exp(logit - peak), of at least 1.
float log_total(const float* logits, int64_t vocab, float peak);

// A vector of the row from `i` on; lanes past its end are -infinity.
HEADRACE_INLINE Floats load_logits(const float* logits, int64_t i, int64_t vocab) {
    if (vocab - i >= kWidth) return load(logits + i);
    alignas(64) float part[kWidth];
    for (int64_t j = 0; j < kWidth; ++j) {
        part[j] = i + j < vocab ? logits[i + j] : -__builtin_inff();
    }
    return load(part);
}

}  // namespace headrace::HEADRACE_ISA
