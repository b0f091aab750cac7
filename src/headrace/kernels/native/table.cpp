// The kernels of one instruction set, by name.
#include "table.hpp"

namespace headrace::HEADRACE_ISA {

void embed(const Embed&, const Step&, Worker&);
void gather_rows(const GatherRows&, const Step&, Worker&);
void norm(const Norm&, const Step&, Worker&);
void linear(const LinearCall&, const Step&, Worker&);
LinearPlan default_plan(Format, int64_t);
bool has_rows(Format, int64_t);
void rotary(const Rotary&, const Step&, Worker&);
void attention(const Attention&, const Step&, Worker&);
void fold_attention(const Attention&, const Step&, Worker&);
void activation(const Activation&, const Step&, Worker&);
void low_rank(const LowRank&, const Step&, Worker&);
void greedy(const Greedy&, Worker&);
void logprobs(const Logprobs&, Worker&);
void draw(const Draw&, Worker&);

#define HEADRACE_STRING_(x) #x
#define HEADRACE_STRING(x) HEADRACE_STRING_(x)

const KernelTable kernels = {HEADRACE_STRING(HEADRACE_ISA), embed, gather_rows, norm, linear,
                             default_plan, has_rows, rotary, attention, fold_attention, activation,
                             low_rank, greedy, logprobs, draw};

}  // namespace headrace::HEADRACE_ISA
