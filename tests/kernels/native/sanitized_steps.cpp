// Every kernel of one instruction set over heap buffers of exactly the sizes that it may touch, at
// odd sizes and several step shapes. Run under AddressSanitizer and UndefinedBehaviorSanitizer.
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <vector>

#include "program.hpp"

namespace headrace::HEADRACE_ISA {
extern const KernelTable kernels;
}

namespace {

using namespace headrace;

// A deterministic stream of small numbers.
uint32_t state = 1;
uint32_t next() {
    state = state * 1664525u + 1013904223u;
    return state >> 8;
}

template <class T>
struct Heap {
    explicit Heap(size_t count) : data(new T[count]()), size(count) {}
    Heap& fill() {
        for (size_t i = 0; i < size; ++i) data[i] = static_cast<T>(next() % 200) / T(100) - T(1);
        return *this;
    }
    T* get() { return data.get(); }
    std::unique_ptr<T[]> data;
    size_t size;
};

constexpr int64_t kTokens = 29, kSequences = 3, kSampled = 3;
constexpr int64_t kVocab = 45;
constexpr int64_t kHeads = 4, kKvHeads = 2, kDim = 32, kBlockSize = 16, kBlocks = 6, kPages = 2;
constexpr int64_t kQkv = (kHeads + 2 * kKvHeads) * kDim;

struct Weights {
    Weights(Format format, int64_t n, int64_t k)
        : bytes(static_cast<size_t>((n + 31) / 32 * tile_bytes(format, k))),
          matrix{bytes.get(), format, n, k} {
        // Any quants; scales and dense weights of zero are as good as others to a sanitizer.
        if (format != Format::float32 && format != Format::bfloat16) {
            for (size_t i = 0; i < bytes.size; ++i) bytes.get()[i] = next() % 60;
        }
    }
    Heap<uint8_t> bytes;
    Matrix matrix;
};

template <class Element, class CacheElement = Element>
void run_model(Format format, Type type, Type cache_type) {
    // Blocks are 32 wide; other formats leave part of a vector.
    const bool dense = format == Format::float32 || format == Format::bfloat16;
    const int64_t hidden = dense ? 98 : 96, width = 64;
    Weights table(format, kVocab, hidden), qkv_weight(format, kQkv, hidden);
    Weights output(format, hidden, kHeads * kDim), gate_up_weight(format, 2 * width, hidden);
    Weights down(format, hidden, width), head(format, kVocab, hidden);
    Heap<int32_t> ids(kTokens), positions(kTokens), slots(kTokens), starts(kSequences + 1);
    Heap<int32_t> lengths(kSequences), rows(kSequences), tables(kSequences * kPages);
    Heap<int32_t> sampled(kSampled);
    Heap<float> residual(kTokens * hidden), norm_weight(hidden), cos_sin(32 * kDim);
    Heap<float> head_norm(kDim), bias(kQkv), logits(kSampled * kVocab);
    norm_weight.fill();
    norm_weight.get()[3] = 100.0f;  // Dominates its block, which takes it out.
    cos_sin.fill();
    head_norm.fill();
    bias.fill();
    Heap<Element> normed(kTokens * hidden), qkv(kTokens * kQkv), delta(kTokens * hidden);
    Heap<Element> attended(kTokens * kHeads * kDim), gate_up(kTokens * 2 * width);
    Heap<Element> activated(kTokens * width), final_rows(kSampled * hidden);
    constexpr auto element_bytes = static_cast<int64_t>(sizeof(CacheElement));
    const int64_t held =
        kKvHeads * cache_page_bytes(cache_type, kBlockSize, kDim) / element_bytes;
    Heap<CacheElement> blocks(kBlocks * 2 * held);
    // Ranks 3, 0 and 9 of one adapter, 0, 5 and 0 of another.
    constexpr int64_t kQuery = kHeads * kDim, kValue = kKvHeads * kDim;
    const int64_t columns[] = {0, kQuery, kQuery + kValue, kQkv};
    const int64_t pieces[] = {0,  3, 0,          3,  0, 0,
                              3,  9, 3 * kQuery, 12, 0, 0,
                              12, 5, 3 * kQuery + 9 * kValue, 17, 0, 0};
    const float scales[] = {0.5f, 0.0f, 2.0f, 0.0f, 1.0f, 0.0f};
    Heap<Element> low(17 * hidden), high(3 * kQuery + 14 * kValue);
    Heap<int32_t> adapters(kTokens);
    for (int64_t t = 0; t < kTokens; ++t) {
        adapters.get()[t] = t < 20 ? 1 : static_cast<int32_t>(t % 3) - 1;
    }
    const Heads heads{kHeads, kKvHeads, kDim};
    const Cache cache{blocks.get(), blocks.get() + held, cache_type, kBlocks, kBlockSize,
                      2 * kKvHeads};

    const auto shared = std::make_shared<Program>(HEADRACE_ISA::kernels);
    Program& program = *shared;
    program.limit_tokens(kTokens);
    program.limit_sequences(kSequences);
    program.limit_sampled(kSampled);
    program.add(Embed{ids.get(), table.matrix, residual.get()});
    program.add(Norm{Rows::tokens, nullptr, type, residual.get(), norm_weight.get(), 1e-5f, nullptr,
                     normed.get(), type, hidden});
    program.add(LinearCall{Rows::tokens, normed.get(), type, qkv_weight.matrix,
                           bias.get(), false, qkv.get(), type, nullptr});
    program.add(LowRank{normed.get(), type, hidden, low.get(), high.get(), pieces, scales, columns,
                        2, 3, 12, adapters.get(), qkv.get(), type, nullptr});
    program.add(Rotary{qkv.get(), type, cos_sin.get(), 32, head_norm.get(), head_norm.get(), 1e-5f,
                       heads, cache, positions.get(), slots.get()});
    program.add(Attention{qkv.get(), type, 0.2f, 20, heads, cache, starts.get(), lengths.get(),
                          rows.get(), tables.get(), kSequences, kPages, attended.get()});
    program.add(LinearCall{Rows::tokens, attended.get(), type, output.matrix,
                           nullptr, false, delta.get(), type, nullptr});
    program.add(Norm{Rows::tokens, delta.get(), type, residual.get(), norm_weight.get(), 1e-5f,
                     nullptr, normed.get(), type, hidden});
    program.add(LinearCall{Rows::tokens, normed.get(), type, gate_up_weight.matrix,
                           nullptr, false, gate_up.get(), type, nullptr});
    program.add(Activation{Rows::tokens, gate_up.get(), activated.get(), type, width});
    program.add(LinearCall{Rows::tokens, normed.get(), type, gate_up_weight.matrix, nullptr, true,
                           activated.get(), type, nullptr});
    program.add(LinearCall{Rows::tokens, activated.get(), type, down.matrix, nullptr,
                           false, delta.get(), type, nullptr});
    program.add(Norm{Rows::sampled, delta.get(), type, residual.get(), norm_weight.get(), 1e-5f,
                     sampled.get(), final_rows.get(), type, hidden});
    program.add(GatherRows{delta.get(), hidden * static_cast<int64_t>(sizeof(Element)),
                           sampled.get(), final_rows.get()});
    program.add(Norm{Rows::sampled, final_rows.get(), type, residual.get(), norm_weight.get(),
                     1e-5f, nullptr, normed.get(), type, hidden});
    program.add(LinearCall{Rows::sampled, final_rows.get(), type, head.matrix,
                           nullptr, false, logits.get(), Type::float32, nullptr});
    Heap<uint8_t> scratch(static_cast<size_t>(program.scratch_bytes()));
    program.set_scratch(scratch.get(), program.scratch_bytes());

    ThreadPool pool(2, {});
    for (int64_t s = 0; s < kSequences; ++s) {
        rows.get()[s] = static_cast<int32_t>(kSequences - 1 - s);
        for (int64_t p = 0; p < kPages; ++p) {
            tables.get()[s * kPages + p] = static_cast<int32_t>(p * kSequences + s);
        }
    }
    // New tokens of each sequence; its context is 32 where that many fit, so pages are read whole.
    for (const std::vector<int32_t>& shape :
         {std::vector<int32_t>{1}, {27, 1, 1}, {1, 1, 1}, {3, 17}, {}}) {
        int32_t token = 0;
        for (size_t s = 0; s < shape.size(); ++s) {
            starts.get()[s] = token;
            lengths.get()[s] = s == 0 ? 32 : 17 + static_cast<int32_t>(s);
            for (int32_t i = 0; i < shape[s]; ++i, ++token) {
                const int32_t position = lengths.get()[s] - shape[s] + i;
                const int32_t page =
                    tables.get()[rows.get()[s] * kPages + position / kBlockSize];
                ids.get()[token] = static_cast<int32_t>(next() % kVocab);
                positions.get()[token] = position;
                slots.get()[token] = static_cast<int32_t>(page * kBlockSize + position % kBlockSize);
            }
            sampled.get()[s] = token - 1;
        }
        starts.get()[shape.size()] = token;
        const auto count = static_cast<int32_t>(shape.size());
        program.run(pool, Step{token, count, count});
    }
    bool refused = false;
    try {
        ids.get()[0] = kVocab;
        program.run(pool, Step{1, 0, 0});
    } catch (const std::out_of_range&) {
        refused = true;
    }
    if (!refused) throw std::runtime_error("a token id past the table was not refused");
    Heap<int32_t> token(kSampled);
    Heap<float> peak(kSampled), logprob(kSampled);
    const Greedy greedy{logits.get(), kSampled, kVocab, token.get(), peak.get(), logprob.get()};
    pool.run(std::make_shared<ThreadPool::Job>(
        [greedy](Worker& worker) { HEADRACE_ISA::kernels.greedy(greedy, worker); }));
}

void run_sampling(int64_t vocab) {
    constexpr int64_t kDraws = 24, kTop = 3;
    Heap<float> logits(static_cast<size_t>(kDraws * vocab)), temperature(kDraws), uniform(kDraws);
    Heap<float> top_p(kDraws), typical_p(kDraws), logprobs(kDraws), top_logprobs(kDraws * kTop);
    Heap<int64_t> top_k(kDraws);
    Heap<int32_t> rows(kDraws), tokens(kDraws), top_tokens(kDraws * kTop);
    logits.fill();
    const float odd[] = {__builtin_inff(), -__builtin_inff(), __builtin_nanf(""), 3e38f, -3e38f};
    for (int64_t r = 0; r < kDraws; ++r) {
        if (r < 10) logits.get()[r * vocab + r % vocab] = odd[r % 5];
        for (int64_t i = 0; r == 10 && i < vocab; ++i) logits.get()[r * vocab + i] = odd[1];
        rows.get()[r] = static_cast<int32_t>(kDraws - 1 - r);
        temperature.get()[r] = r % 7 == 0 ? 1e-30f : 0.5f + static_cast<float>(r);
        uniform.get()[r] = static_cast<float>(r) / kDraws;
        top_k.get()[r] = r % 3 == 0 ? vocab : 1 + r % vocab;
        top_p.get()[r] = r % 4 == 0 ? 1.0f : 0.04f * static_cast<float>(r);
        typical_p.get()[r] = r % 5 == 0 ? 1.0f : 1.0f - 0.04f * static_cast<float>(r);
    }
    ThreadPool pool(2, {});
    Heap<float> scratch(static_cast<size_t>(sampling_scratch_floats(vocab, 2)));
    const Draw draw{logits.get(),     vocab,       kDraws,          rows.get(),
                    temperature.get(), top_k.get(), top_p.get(),     typical_p.get(),
                    uniform.get(),    tokens.get(), scratch.get()};
    pool.run(std::make_shared<ThreadPool::Job>(
        [draw](Worker& worker) { HEADRACE_ISA::kernels.draw(draw, worker); }));
    const Logprobs asked{logits.get(),     kDraws, vocab, tokens.get(), logprobs.get(), kTop,
                         top_tokens.get(), top_logprobs.get(), scratch.get()};
    pool.run(std::make_shared<ThreadPool::Job>(
        [asked](Worker& worker) { HEADRACE_ISA::kernels.logprobs(asked, worker); }));
    for (int64_t r = 0; r < kDraws; ++r) {
        if (tokens.get()[r] < 0 || tokens.get()[r] >= vocab) {
            throw std::runtime_error("a token was drawn that does not exist");
        }
    }
}

}  // namespace

int main() {
    run_model<float>(Format::float32, Type::float32, Type::float32);
    run_model<float>(Format::q4_1, Type::float32, Type::float32);
    run_model<float, uint8_t>(Format::q4_1, Type::float32, Type::int8);
    for (const Format format :
         {Format::bfloat16, Format::q8_0, Format::q4_0, Format::q4_1}) {
        run_model<uint16_t>(format, Type::bfloat16, Type::bfloat16);
    }
    run_model<uint16_t, uint8_t>(Format::bfloat16, Type::bfloat16, Type::int8);
    for (const int64_t vocab : {3, 16, 45, 300, 515}) run_sampling(vocab);
    std::puts("no errors");
}
