#include "sampling_module.hpp"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>

#include "buffers.hpp"
#include "table.hpp"

namespace headrace {
namespace {

using OptionalArray = std::optional<Array>;

template <class Call>
void run_rows(ThreadPool& pool, void (*kernel)(const Call&, Worker&), const Call& call,
              int64_t rows, int64_t rows_worth_waking) {
    const nb::gil_scoped_release release;
    // Sleeping workers are not worth waking for little.
    static ThreadPool alone(1, {});
    ThreadPool& chosen = rows < rows_worth_waking ? alone : pool;
    chosen.run(std::make_shared<ThreadPool::Job>(
        [kernel, call](Worker& worker) { kernel(call, worker); }));
}

float* sampling_scratch(const Array& scratch, int64_t vocab, const ThreadPool& pool) {
    return floats("scratch", scratch, {sampling_scratch_floats(vocab, pool.size())});
}

void greedy(ThreadPool& pool, const std::string& kernels, Array logits, Array token, Array peak,
            OptionalArray logprob) {
    Greedy call{};
    call.logits = floats("logits", logits, {kAny, kAny});
    call.rows = static_cast<int64_t>(logits.shape(0));
    call.vocab = static_cast<int64_t>(logits.shape(1));
    if (call.vocab < 1) throw std::invalid_argument("logits have no columns");
    call.token = integers("token", token, {call.rows});
    call.peak = floats("peak", peak, {call.rows});
    if (logprob) call.logprob = floats("logprob", *logprob, {call.rows});
    run_rows(pool, find_kernels(kernels).greedy, call, call.rows, pool.size() * 2);
}

void check_entries(const char* name, const int32_t* values, int64_t count, int64_t bound) {
    for (int64_t i = 0; i < count; ++i) {
        if (values[i] < 0 || values[i] >= bound) {
            throw std::out_of_range(std::string(name) + "[" + std::to_string(i) + "] is " +
                                    std::to_string(values[i]) + ", which is not in [0, " +
                                    std::to_string(bound) + ")");
        }
    }
}

void logprobs(ThreadPool& pool, const std::string& kernels, Array logits, Array tokens,
              Array logprobs, Array top_tokens, Array top_logprobs, Array scratch) {
    Logprobs call{};
    call.logits = floats("logits", logits, {kAny, kAny});
    call.rows = static_cast<int64_t>(logits.shape(0));
    call.vocab = static_cast<int64_t>(logits.shape(1));
    call.tokens = integers("tokens", tokens, {call.rows});
    check_entries("tokens", call.tokens, call.rows, call.vocab);
    call.logprobs = floats("logprobs", logprobs, {call.rows});
    call.top_tokens = integers("top_tokens", top_tokens, {call.rows, kAny});
    call.top = static_cast<int64_t>(top_tokens.shape(1));
    if (call.top > call.vocab) {
        refuse("top_tokens", "asks for more tokens than the vocabulary has");
    }
    call.top_logprobs = floats("top_logprobs", top_logprobs, {call.rows, call.top});
    call.scratch = sampling_scratch(scratch, call.vocab, pool);
    run_rows(pool, find_kernels(kernels).logprobs, call, call.rows, 2);
}

void draw(ThreadPool& pool, const std::string& kernels, Array logits, Array rows,
          Array temperature, Array top_k, Array top_p, Array typical_p, Array uniform,
          Array tokens, Array scratch) {
    Draw call{};
    call.logits = floats("logits", logits, {kAny, kAny});
    call.vocab = static_cast<int64_t>(logits.shape(1));
    if (call.vocab < 1) throw std::invalid_argument("logits have no columns");
    call.rows = integers("rows", rows, {kAny});
    call.draws = static_cast<int64_t>(rows.shape(0));
    check_entries("rows", call.rows, call.draws, static_cast<int64_t>(logits.shape(0)));
    call.temperature = floats("temperature", temperature, {call.draws});
    call.top_k = wide_integers("top_k", top_k, {call.draws});
    call.top_p = floats("top_p", top_p, {call.draws});
    call.typical_p = floats("typical_p", typical_p, {call.draws});
    call.uniform = floats("uniform", uniform, {call.draws});
    call.tokens = integers("tokens", tokens, {call.draws});
    call.scratch = sampling_scratch(scratch, call.vocab, pool);
    run_rows(pool, find_kernels(kernels).draw, call, call.draws, 2);
}

}  // namespace

void bind_sampling(nb::module_& module) {
    using namespace nanobind::literals;

    module.def("greedy", &greedy, "pool"_a, "kernels"_a, "logits"_a.noconvert(),
               "token"_a.noconvert(), "peak"_a.noconvert(), "logprob"_a.noconvert().none());
    module.def("logprobs", &logprobs, "pool"_a, "kernels"_a, "logits"_a.noconvert(),
               "tokens"_a.noconvert(), "logprobs"_a.noconvert(), "top_tokens"_a.noconvert(),
               "top_logprobs"_a.noconvert(), "scratch"_a.noconvert());
    module.def("draw", &draw, "pool"_a, "kernels"_a, "logits"_a.noconvert(), "rows"_a.noconvert(),
               "temperature"_a.noconvert(), "top_k"_a.noconvert(), "top_p"_a.noconvert(),
               "typical_p"_a.noconvert(), "uniform"_a.noconvert(), "tokens"_a.noconvert(),
               "scratch"_a.noconvert());
    module.def("sampling_scratch_floats", &sampling_scratch_floats, "vocab"_a, "workers"_a,
               "Size of the scratch array of logprobs and draw.");
}

}  // namespace headrace
