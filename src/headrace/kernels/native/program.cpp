#include "program.hpp"

#include <algorithm>
#include <chrono>
#include <stdexcept>

namespace headrace {
namespace {

std::string address(const void* p) { return std::to_string(reinterpret_cast<uintptr_t>(p)); }

void check_range(const char* what, int64_t index, int64_t value, int64_t bound) {
    if (value >= 0 && value < bound) return;
    throw std::out_of_range(std::string(what) + "[" + std::to_string(index) + "] is " +
                            std::to_string(value) + ", which is not in [0, " +
                            std::to_string(bound) + ")");
}

void check_size(const char* what, int64_t value, int64_t bound) {
    if (value >= 0 && value <= bound) return;
    throw std::invalid_argument("a step of " + std::to_string(value) + " " + what +
                                " was given to a program for up to " + std::to_string(bound));
}

void check_sequences(const Attention& call, const Step& step) {
    if (step.sequences == 0) return;
    if (call.query_start[0] != 0 || call.query_start[step.sequences] != step.tokens) {
        throw std::out_of_range("query_start does not go from 0 to the number of tokens");
    }
    for (int64_t s = 0; s < step.sequences; ++s) {
        const int64_t tokens = call.query_start[s + 1] - call.query_start[s];
        const int64_t context = call.context_lengths[s];
        check_range("query_start", s, tokens, int64_t{step.tokens} + 1);
        check_range("context_lengths", s, context - tokens, context + 1);
        const int64_t pages = (context + call.cache.block_size - 1) / call.cache.block_size;
        check_range("context_lengths (in blocks)", s, pages, call.max_blocks + 1);
    }
}

void check_pages(const Attention& call, int64_t max_rows, const Step& step) {
    for (int64_t s = 0; s < step.sequences; ++s) {
        check_range("rows", s, call.rows[s], max_rows);
        const int32_t* pages = call.block_tables + call.rows[s] * call.max_blocks;
        const int64_t count =
            (call.context_lengths[s] + call.cache.block_size - 1) / call.cache.block_size;
        for (int64_t i = 0; i < count; ++i) {
            check_range("block_tables", i, pages[i], call.cache.blocks);
        }
    }
}

std::string linear_name(const Matrix& weight) {
    return "linear " + std::to_string(weight.n) + "x" + std::to_string(weight.k);
}

LinearShape shape_of(const LinearCall& call) {
    return {call.weight.format, call.weight.n, call.weight.k, call.gated};
}

}  // namespace

void Program::limit_tokens(int64_t rows) {
    capacity_.tokens = static_cast<int32_t>(std::min<int64_t>(capacity_.tokens, rows));
}

void Program::limit_sequences(int64_t rows) {
    capacity_.sequences = static_cast<int32_t>(std::min<int64_t>(capacity_.sequences, rows));
}

void Program::limit_sampled(int64_t rows) {
    capacity_.sampled = static_cast<int32_t>(std::min<int64_t>(capacity_.sampled, rows));
}

// The place of a shape among shapes_, which has it from now on.
size_t Program::add_plans(const LinearShape& shape) {
    const size_t place = find(shape);
    if (place < shapes_.size()) return place;
    Plans plans;
    for (int index = 0; index < kPlans; ++index) {
        plans[static_cast<size_t>(index)] =
            kernels_.default_plan(std::get<Format>(shape), int64_t{1} << index);
    }
    auto table = std::make_shared<PlanTable>(*plans_);
    table->push_back(plans);
    plans_ = std::move(table);
    shapes_.push_back(shape);
    return place;
}

// The place of a shape among shapes_; their number where it is none of them.
size_t Program::find(const LinearShape& shape) const {
    return static_cast<size_t>(std::find(shapes_.begin(), shapes_.end(), shape) - shapes_.begin());
}

size_t Program::index_of(const LinearShape& shape) const {
    const size_t place = find(shape);
    if (place == shapes_.size()) throw std::invalid_argument("no linear has this shape");
    return place;
}

std::vector<LinearShape> Program::linear_shapes() const {
    std::vector<LinearShape> shapes = shapes_;
    std::sort(shapes.begin(), shapes.end());
    return shapes;
}

std::vector<std::pair<std::string, int64_t>> Program::linear_bytes() const {
    std::vector<std::pair<std::string, int64_t>> result;
    for (const LinearCall& call : linears_) {
        const Matrix& weight = call.weight;
        const int64_t tiles = (weight.n + kTileRows - 1) / kTileRows;
        result.emplace_back(linear_name(weight), tiles * tile_bytes(weight.format, weight.k));
    }
    return result;
}

const LinearPlan& Program::plan(const LinearShape& shape, int64_t rows) const {
    return (*plans_)[index_of(shape)][static_cast<size_t>(plan_index(rows))];
}

void Program::set_plan(const LinearShape& shape, int64_t rows, const LinearPlan& plan) {
    if (!kernels_.has_rows(std::get<Format>(shape), plan.most_rows)) {
        throw std::invalid_argument("no kernel computes " + std::to_string(plan.most_rows) +
                                    " rows of this format at once");
    }
    if (plan.chunk_rows < 1 || plan.chunk_rows > kMostChunkRows) {
        throw std::invalid_argument("chunk_rows must be in [1, " + std::to_string(kMostChunkRows) +
                                    "], not " + std::to_string(plan.chunk_rows));
    }
    auto table = std::make_shared<PlanTable>(*plans_);
    (*table)[index_of(shape)][static_cast<size_t>(plan_index(rows))] = plan;
    plans_ = std::move(table);
}

int64_t Program::most_rows(const LinearShape& shape) const {
    for (const LinearCall& call : linears_) {
        if (shape_of(call) == shape) return row_count(call.rows, capacity_);
    }
    throw std::invalid_argument("no linear has this shape");
}

int64_t Program::run_linears(ThreadPool& pool, const LinearShape& shape, int64_t rows,
                             int64_t most_calls) {
    const Plans& shape_plans = (*plans_)[index_of(shape)];
    std::vector<LinearCall> calls;
    for (const LinearCall& call : linears_) {
        if (shape_of(call) != shape || static_cast<int64_t>(calls.size()) == most_calls) continue;
        check_size("rows", rows, row_count(call.rows, capacity_));
        calls.push_back(call);
        calls.back().scratch = scratch_;
        calls.back().plans = shape_plans.data();
    }
    if (calls.empty()) throw std::invalid_argument("no linear has this shape");
    check_scratch();
    const auto done = static_cast<int64_t>(calls.size());
    const auto count = static_cast<int32_t>(rows);
    pool.run(std::make_shared<ThreadPool::Job>(
        [self = shared_from_this(), plans = plans_, calls,
         step = Step{count, 0, count}](Worker& worker) {
            for (const LinearCall& call : calls) {
                if (worker.late()) return;
                self->kernels_.linear(call, step, worker);
                worker.next_phase();
            }
        }));
    return done;
}

void Program::check_scratch() const {
    if (given_scratch_ >= scratch_bytes()) return;
    throw std::invalid_argument("the program needs " + std::to_string(scratch_bytes()) +
                                " bytes of scratch and has " + std::to_string(given_scratch_));
}

int64_t Program::scratch_bytes() const {
    int64_t most = capacity_.tokens * most_narrow_rows_ * int64_t{sizeof(float)};
    most = std::max(most, attention_scratch_bytes_);
    for (const LinearCall& call : linears_) {
        const int64_t rows = row_count(call.rows, capacity_) + kMostPackedRows;
        most = std::max(most, rows * packed_row_bytes(call.weight.format, call.weight.k));
    }
    return most;
}

void Program::add_operation(std::string name, Call run) {
    operations_.push_back({std::move(name), std::move(run), {}});
    seconds_.push_back(0.0);
}

// Layers read the same step buffers: a check is made once a step, whoever asked for it.
void Program::add_check(std::string key, Check check) {
    checks_.emplace(std::move(key), std::move(check));
}

void Program::add(const Embed& call) {
    add_check("ids " + address(call.token_ids) + " " + std::to_string(call.table.n),
              [call](const Step& step) {
                  for (int64_t t = 0; t < step.tokens; ++t) {
                      check_range("token_ids", t, call.token_ids[t], call.table.n);
                  }
              });
    add_operation("embed", [run = kernels_.embed, call](const Run& given, Worker& worker) {
        run(call, given.step, worker);
    });
}

void Program::check_sampled(const int32_t* sampled) {
    add_check("sampled " + address(sampled), [sampled](const Step& step) {
        for (int64_t r = 0; r < step.sampled; ++r) {
            check_range("sampled_tokens", r, sampled[r], step.tokens);
        }
    });
}

void Program::add(const GatherRows& call) {
    check_sampled(call.rows);
    add_operation("gather", [run = kernels_.gather_rows, call](const Run& given, Worker& worker) {
        run(call, given.step, worker);
    });
}

void Program::add(const Norm& call) {
    if (call.gathered != nullptr) check_sampled(call.gathered);
    add_operation("norm", [run = kernels_.norm, call](const Run& given, Worker& worker) {
        run(call, given.step, worker);
    });
}

void Program::add(const LinearCall& call) {
    const size_t plans = add_plans(shape_of(call));
    linears_.push_back(call);
    const Matrix& weight = call.weight;
    const int64_t tiles = (weight.n + kTileRows - 1) / kTileRows;
    const Upcoming upcoming{weight.tiles, tile_bytes(weight.format, weight.k),
                            call.gated ? tiles / 2 : tiles, call.gated};
    for (auto before = operations_.rbegin(); before != operations_.rend(); ++before) {
        if (before->next.data != nullptr) break;
        before->next = upcoming;
    }
    const auto run_placed = [run = kernels_.linear, call, plans](const Run& given, Worker& worker) {
        LinearCall placed = call;
        placed.scratch = given.scratch;
        placed.plans = (*given.plans)[plans].data();
        run(placed, given.step, worker);
    };
    add_operation(linear_name(weight), run_placed);
}

void Program::add(const Rotary& call) {
    const int64_t slots = call.cache.blocks * call.cache.block_size;
    add_check("slots " + address(call.slots) + " " + std::to_string(slots),
              [call, slots](const Step& step) {
                  for (int64_t t = 0; t < step.tokens; ++t) {
                      check_range("cache_slots", t, call.slots[t], slots);
                  }
              });
    add_check("positions " + address(call.positions) + " " + std::to_string(call.max_position),
              [call](const Step& step) {
                  for (int64_t t = 0; t < step.tokens; ++t) {
                      check_range("positions", t, call.positions[t], call.max_position);
                  }
              });
    add_operation("rotary", [run = kernels_.rotary, call](const Run& given, Worker& worker) {
        run(call, given.step, worker);
    });
}

void Program::add(const Attention& call) {
    add_check("sequences " + address(call.query_start) + " " + address(call.block_tables) + " " +
                  std::to_string(call.cache.blocks) + " " + std::to_string(call.cache.block_size),
              [call](const Step& step) {
                  check_sequences(call, step);
                  check_pages(call, call.max_rows, step);
              });
    const int64_t partials = kPartialSlots * partial_slot_floats(call.heads.dim);
    attention_scratch_bytes_ =
        std::max(attention_scratch_bytes_, partials * int64_t{sizeof(float)});
    const auto operation = [call](auto run) {
        return [run, call](const Run& given, Worker& worker) {
            Attention placed = call;
            placed.partials = reinterpret_cast<float*>(given.scratch);
            run(placed, given.step, worker);
        };
    };
    add_operation("attention", operation(kernels_.attention));
    add_operation("attention fold", operation(kernels_.fold_attention));
}

void Program::add(const Activation& call) {
    add_operation("activation", [run = kernels_.activation, call](const Run& given, Worker& worker) {
        run(call, given.step, worker);
    });
}

void Program::add(const LowRank& call) {
    most_narrow_rows_ = std::max(most_narrow_rows_, call.most_rows);
    add_check("adapters " + address(call.adapter_of_token) + " " + std::to_string(call.adapters),
              [call](const Step& step) {
                  for (int64_t t = 0; t < step.tokens; ++t) {
                      const int32_t adapter = call.adapter_of_token[t];
                      if (adapter != -1) check_range("adapter_of_token", t, adapter, call.adapters);
                  }
              });
    add_operation("low rank", [run = kernels_.low_rank, call](const Run& given, Worker& worker) {
        LowRank placed = call;
        placed.narrow = reinterpret_cast<float*>(given.scratch);
        run(placed, given.step, worker);
    });
}

void Program::set_scratch(uint8_t* scratch, int64_t bytes) {
    scratch_ = scratch;
    given_scratch_ = bytes;
}

void Program::run(ThreadPool& pool, const Step& step) {
    check_size("tokens", step.tokens, capacity_.tokens);
    check_size("sequences", step.sequences, capacity_.sequences);
    check_size("sampled tokens", step.sampled, capacity_.sampled);
    check_scratch();
    for (const auto& [key, check] : checks_) check(step);
    pool.run(std::make_shared<ThreadPool::Job>(
        [self = shared_from_this(), given = Run{step, scratch_, plans_}](Worker& worker) {
            self->replay(given, worker);
        }));
}

void Program::replay(const Run& run, Worker& worker) {
    using Clock = std::chrono::steady_clock;
    const bool timed = profiling_ && worker.index() == 0;
    auto before = Clock::now();
    for (size_t i = 0; i < operations_.size(); ++i) {
        if (worker.late()) return;
        worker.expect(operations_[i].next);
        operations_[i].run(run, worker);
        worker.next_phase();
        if (timed) {
            const auto after = Clock::now();
            seconds_[i] += std::chrono::duration<double>(after - before).count();
            before = after;
        }
    }
}

void Program::set_profiling(bool on) {
    profiling_ = on;
    std::fill(seconds_.begin(), seconds_.end(), 0.0);
}

std::vector<std::pair<std::string, double>> Program::profile() const {
    std::vector<std::pair<std::string, double>> result;
    for (size_t i = 0; i < operations_.size(); ++i) {
        result.emplace_back(operations_[i].name, seconds_[i]);
    }
    return result;
}

}  // namespace headrace
