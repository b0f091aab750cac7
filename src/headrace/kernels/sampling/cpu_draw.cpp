// One draw from each row: temperature, top-k, top-p and typical-p in the order and with the ties of
// reference.py, then the inverse of the cumulative distribution in order of token id.
//
// Weights are exp(logit / temperature - largest) in float32; sums of them are float64, in an order
// that depends on nothing but the row.
#include "kernel_table.hpp"
#include "row.hpp"
#include "threshold.hpp"

namespace headrace::HEADRACE_ISA {
namespace {

constexpr int64_t kSegment = 256;
constexpr float kLeastNormal = 1.17549435e-38f;

double segment_weight(const Candidates& row, int64_t first) {
    const int64_t last = first + kSegment < row.count ? first + kSegment : row.count;
    WideSum sum;
    for (int64_t i = first; i < last; i += kWidth) sum.add(load(row.weights + i));
    return sum.total();
}

double total_weight(const Candidates& row) {
    double total = 0.0;
    for (int64_t i = 0; i < row.count; i += kSegment) total += segment_weight(row, i);
    return total;
}

// Keys are logits over temperature; false where the largest overflows.
bool scale(const float* logits, float peak, float temperature, Candidates& row) {
    const float largest = peak / temperature;
    if (largest - largest != 0.0f) return false;
    const Floats infinity = broadcast(__builtin_inff());
    Floats least = broadcast(largest);
    alignas(64) int32_t first_tokens[kWidth];
    for (int i = 0; i < kWidth; ++i) first_tokens[i] = i;
    Ints tokens = load_ints(first_tokens);
    for (int64_t i = 0; i < row.count; i += kWidth) {
        const Floats key = div(load_logits(logits, i, row.count), broadcast(temperature));
        const Mask forbidden = lanes_equal(key, sub(zeros(), infinity));
        least = minimum(least, choose(forbidden, infinity, key));
        store(row.keys + i, key);
        store(reinterpret_cast<float*>(row.tokens) + i, as_floats(tokens));
        tokens = add_ints(tokens, broadcast_int(kWidth));
    }
    pad(row.keys, row.weights, row.count);
    row.low = reduce_min(least);
    row.high = largest;
    return true;
}

// The weights of the keys, and their sum.
double weigh(Candidates& row) {
    WideSum sum;
    for (int64_t i = 0; i < row.count; i += kWidth) {
        const Floats weight = exponential(sub(load(row.keys + i), broadcast(row.high)));
        store(row.weights + i, weight);
        sum.add(weight);
    }
    pad(row.keys, row.weights, row.count);
    return sum.total();
}

// Ties with the last of the `most` likeliest are kept.
void keep_likeliest(int64_t most, Candidates& row, const Candidates& room) {
    const auto count = static_cast<double>(most);
    keep_from<false>(find_threshold<false>(row, count, room), count, row);
}

// The least set of greatest keys that weighs at least `share` of `total`.
void keep_share(float share, double total, Candidates& row, const Candidates& room) {
    const double target = static_cast<double>(share) * total;
    keep_from<true>(find_threshold<true>(row, target, room), target, row);
}

// Keys become their negated distance from the expected information content (arXiv:2202.00666).
void rank_by_typicality(double total, Candidates& row) {
    const Floats largest = broadcast(row.high);
    WideSum sum;
    for (int64_t i = 0; i < row.count; i += kWidth) {
        const Floats weight = load(row.weights + i);
        const Floats below = sub(load(row.keys + i), largest);
        // Of forbidden tokens 0 times -infinity.
        const Mask counts = lanes_at_least(weight, broadcast(kLeastNormal));
        sum.add(choose(counts, mul(weight, below), zeros()));
    }
    const auto expected = static_cast<float>(sum.total() / total);
    const Floats infinity = broadcast(__builtin_inff());
    Floats least = infinity, greatest = sub(zeros(), infinity);
    for (int64_t i = 0; i < row.count; i += kWidth) {
        const Floats below = sub(load(row.keys + i), largest);
        const Floats key = sub(zeros(), absolute(sub(below, broadcast(expected))));
        const Mask forbidden = lanes_equal(key, sub(zeros(), infinity));
        least = minimum(least, choose(forbidden, infinity, key));
        greatest = maximum(greatest, key);
        store(row.keys + i, key);
    }
    pad(row.keys, row.weights, row.count);
    row.low = reduce_min(least);
    row.high = reduce_max(greatest);
}

// The first token at which the cumulative weight exceeds `uniform` of the total.
int32_t draw_token(const Candidates& row, float uniform) {
    const double target = static_cast<double>(uniform) * total_weight(row);
    double cumulative = 0.0;
    int64_t last = 0;
    for (int64_t first = 0; first < row.count; first += kSegment) {
        const double segment = segment_weight(row, first);
        if (cumulative + segment <= target) {
            cumulative += segment;
            continue;
        }
        for (int64_t i = first; i < first + kSegment && i < row.count; ++i) {
            cumulative += static_cast<double>(row.weights[i]);
            if (cumulative > target) return row.tokens[i];
            if (row.weights[i] > 0.0f) last = i;
        }
        // Summed one by one, the segment has come out a last bit smaller.
        return row.tokens[last];
    }
    return row.tokens[last];
}

}  // namespace

void draw(const Draw& call, Worker& worker) {
    int64_t r = 0;
    while (worker.take(call.draws, r)) {
        const float* logits = call.logits + call.rows[r] * call.vocab;
        const Peak peak = find_peak(logits, call.vocab);
        // No number, or a temperature that makes one overflow: the likeliest takes all.
        call.tokens[r] = static_cast<int32_t>(peak.token);
        if (peak.value - peak.value != 0.0f) continue;
        Candidates row = candidates_in(call.scratch, call.vocab, worker.index(), false);
        const Candidates room = candidates_in(call.scratch, call.vocab, worker.index(), true);
        if (!scale(logits, peak.value, call.temperature[r], row)) continue;
        if (call.top_k[r] < call.vocab) keep_likeliest(call.top_k[r], row, room);
        double total = weigh(row);
        if (call.top_p[r] < 1.0f) {
            keep_share(call.top_p[r], total, row, room);
            total = total_weight(row);
        }
        if (call.typical_p[r] < 1.0f) {
            rank_by_typicality(total, row);
            keep_share(call.typical_p[r], total, row, room);
        }
        call.tokens[r] = draw_token(row, call.uniform[r]);
    }
}

}  // namespace headrace::HEADRACE_ISA
