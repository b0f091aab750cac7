// A flat list of kernel calls over buffers in place, replayed with a step's T, S and R.
#pragma once

#include <array>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "kernel_table.hpp"

namespace headrace {

// What plans of linears depend on beside the number of rows: format, N, K, whether gate and up.
using LinearShape = std::tuple<Format, int64_t, int64_t, bool>;

// Held by shared_ptr: a worker that is late may look at it for a while after run() has returned.
class Program : public std::enable_shared_from_this<Program> {
  public:
    explicit Program(const KernelTable& kernels) : kernels_(kernels) {}

    // A recorded buffer has this many rows of a kind: no step may bring more.
    void limit_tokens(int64_t rows);
    void limit_sequences(int64_t rows);
    void limit_sampled(int64_t rows);

    void add(const Embed& call);
    void add(const GatherRows& call);
    void add(const Norm& call);
    void add(const LinearCall& call);
    void add(const Rotary& call);
    void add(const Attention& call);
    void add(const Activation& call);
    void add(const LowRank& call);

    // The shapes of its linears. Each begins with the kernels' own plans.
    std::vector<LinearShape> linear_shapes() const;
    // The plan of a shape for `rows` rows, and for others of the same index. Throws
    // std::invalid_argument where no linear has that shape.
    const LinearPlan& plan(const LinearShape& shape, int64_t rows) const;
    // Between runs only. Also throws where no kernel can follow the plan.
    void set_plan(const LinearShape& shape, int64_t rows, const LinearPlan& plan);
    // Rows that a linear of this shape has buffers for.
    int64_t most_rows(const LinearShape& shape) const;
    bool has_rows(Format format, int64_t rows) const { return kernels_.has_rows(format, rows); }
    // Runs the first `most_calls` linears of a shape on `rows` rows of whatever their inputs hold;
    // how many there were.
    int64_t run_linears(ThreadPool& pool, const LinearShape& shape, int64_t rows, int64_t most_calls);

    // Bytes that linear and low-rank calls need beside their operands.
    int64_t scratch_bytes() const;
    void set_scratch(uint8_t* scratch, int64_t bytes);

    // Throws std::invalid_argument or std::out_of_range, before anything is computed, where the
    // step exceeds the capacity or an index in a step buffer leaves what it indexes.
    void run(ThreadPool& pool, const Step& step);

    // While on, run() adds up the time of each call as worker 0 sees it.
    void set_profiling(bool on);
    std::vector<std::pair<std::string, double>> profile() const;
    // Of each linear, its name in the profile and the bytes of its weights.
    std::vector<std::pair<std::string, int64_t>> linear_bytes() const;

  private:
    using Plans = std::array<LinearPlan, kPlans>;
    using PlanTable = std::vector<Plans>;  // as shapes_ names them
    // What a run was given: a late worker still reads it when the next has other plans.
    struct Run {
        Step step;
        uint8_t* scratch;
        std::shared_ptr<const PlanTable> plans;
    };
    using Call = std::function<void(const Run&, Worker&)>;
    struct Operation {
        std::string name;
        Call run;
        Upcoming next;  // the weights of the linear that comes after it
    };
    using Check = std::function<void(const Step&)>;

    void add_operation(std::string name, Call run);
    size_t add_plans(const LinearShape& shape);
    size_t find(const LinearShape& shape) const;
    size_t index_of(const LinearShape& shape) const;
    void check_scratch() const;
    void replay(const Run& run, Worker& worker);
    void add_check(std::string key, Check check);
    void check_sampled(const int32_t* sampled);

    const KernelTable& kernels_;
    Step capacity_{INT32_MAX, INT32_MAX, INT32_MAX};
    std::vector<Operation> operations_;
    std::map<std::string, Check> checks_;
    uint8_t* scratch_ = nullptr;
    std::vector<LinearCall> linears_;
    std::vector<LinearShape> shapes_;
    std::shared_ptr<const PlanTable> plans_ = std::make_shared<PlanTable>();
    int64_t most_narrow_rows_ = 0;
    int64_t attention_scratch_bytes_ = 0;
    int64_t given_scratch_ = 0;
    bool profiling_ = false;
    std::vector<double> seconds_;
};

}  // namespace headrace
