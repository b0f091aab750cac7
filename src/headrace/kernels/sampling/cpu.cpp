// The most likely token of each row of logits, and log-probabilities.
#include "kernel_table.hpp"
#include "row.hpp"
#include "threshold.hpp"

namespace headrace::HEADRACE_ISA {
namespace {

constexpr int64_t kSegment = 1024;
constexpr uint32_t kInfinity = 0x7f800000;
constexpr float kLeast = -3.402823466e38f;

// Whether token `a` comes after token `b` in order of falling logits; of equals the first comes
// first.
HEADRACE_INLINE bool comes_after(const float* logits, int32_t a, int32_t b) {
    return logits[a] < logits[b] || (logits[a] == logits[b] && a > b);
}

// Heapsort by `comes_after`: the number of tokens is up to the client.
void sort_by_logit(const float* logits, int32_t* tokens, int64_t count) {
    const auto swap = [&](int64_t a, int64_t b) {
        const int32_t token = tokens[a];
        tokens[a] = tokens[b];
        tokens[b] = token;
    };
    const auto sink = [&](int64_t root, int64_t end) {
        for (int64_t child = 2 * root + 1; child < end; child = 2 * root + 1) {
            if (child + 1 < end && comes_after(logits, tokens[child + 1], tokens[child])) ++child;
            if (!comes_after(logits, tokens[child], tokens[root])) return;
            swap(root, child);
            root = child;
        }
    };
    for (int64_t root = count / 2; root-- > 0;) sink(root, count);
    for (int64_t end = count; end-- > 1;) {
        swap(0, end);
        sink(0, end);
    }
}

// The `wanted` most likely tokens of a row without NaN, in that order.
void find_likeliest(const float* logits, int64_t wanted, const Candidates& row,
                    const Candidates& room, int32_t* tokens) {
    const int64_t vocab = row.count;
    for (int64_t i = 0; i < vocab; i += kWidth) {
        // Forbidden tokens are candidates too: somebody may ask for all.
        store(row.keys + i, maximum(load_logits(logits, i, vocab), broadcast(kLeast)));
    }
    pad(row.keys, row.weights, vocab);
    const Threshold last = find_threshold<false>(row, static_cast<double>(wanted), room);
    int64_t equal = wanted - static_cast<int64_t>(last.before), found = 0;
    for (int64_t i = 0; i < vocab; i += kWidth) {
        const Mask kept = lanes_at_least(load(row.keys + i), broadcast(last.key));
        for (uint32_t bits = bits_of(kept); bits != 0; bits &= bits - 1) {
            const int64_t token = i + __builtin_ctz(bits);
            if (row.keys[token] == last.key && equal-- <= 0) continue;
            tokens[found++] = static_cast<int32_t>(token);
        }
    }
    sort_by_logit(logits, tokens, wanted);
}

}  // namespace

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

float log_total(const float* logits, int64_t vocab, float peak) {
    Floats sums = zeros();
    for (int64_t i = 0; i < vocab; i += kWidth) {
        sums = add(sums, exponential(sub(load_logits(logits, i, vocab), broadcast(peak))));
    }
    return __builtin_logf(reduce_add(sums));
}

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

void logprobs(const Logprobs& call, Worker& worker) {
    int64_t r = 0;
    while (worker.take(call.rows, r)) {
        const float* logits = call.logits + r * call.vocab;
        float* top_logprobs = call.top_logprobs + r * call.top;
        int32_t* top_tokens = call.top_tokens + r * call.top;
        const Peak peak = find_peak(logits, call.vocab);
        const bool finite = peak.value - peak.value == 0.0f;
        const float total =
            finite ? peak.value + log_total(logits, call.vocab, peak.value) : __builtin_nanf("");
        call.logprobs[r] = logits[call.tokens[r]] - total;
        if (call.top == 0) continue;
        if (finite) {
            Candidates row = candidates_in(call.scratch, call.vocab, worker.index(), false);
            row.low = kLeast;
            row.high = peak.value;
            find_likeliest(logits, call.top, row,
                           candidates_in(call.scratch, call.vocab, worker.index(), true), top_tokens);
        }
        for (int64_t i = 0; i < call.top; ++i) {
            if (!finite) top_tokens[i] = static_cast<int32_t>(i);
            top_logprobs[i] = logits[top_tokens[i]] - total;
        }
    }
}

}  // namespace headrace::HEADRACE_ISA
