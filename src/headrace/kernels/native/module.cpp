// headrace.kernels._native: thread pool, matrices, caches and programs, for Python.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <thread>

#include "buffers.hpp"
#include "program.hpp"
#include "sampling_module.hpp"
#include "table.hpp"

namespace headrace {
namespace {

using OptionalArray = std::optional<Array>;

constexpr std::pair<const char*, Format> kFormats[] = {{"float32", Format::float32},
                                                       {"bfloat16", Format::bfloat16},
                                                       {"q8_0", Format::q8_0},
                                                       {"q4_0", Format::q4_0},
                                                       {"q4_1", Format::q4_1}};

Format parse_format(const std::string& name) {
    for (const auto& [known, format] : kFormats) {
        if (name == known) return format;
    }
    throw std::invalid_argument("unknown matrix format \"" + name + "\"");
}

std::string format_name(Format wanted) {
    for (const auto& [name, format] : kFormats) {
        if (format == wanted) return name;
    }
    return "";
}

// (format, n, k, gated) and (most_rows, chunk_rows, split_by_rows, packs_privately).
using PyShape = std::tuple<std::string, int64_t, int64_t, bool>;
using PyPlan = std::tuple<int32_t, int32_t, bool, bool>;

LinearShape parse_shape(const PyShape& shape) {
    const auto& [format, n, k, gated] = shape;
    return {parse_format(format), n, k, gated};
}

// A matrix [n, k] in the interleaved layout of its format.
struct PyMatrix {
    PyMatrix(Array data, const std::string& format, int64_t n, int64_t k) : array(data) {
        if (n < 1 || k < 1) throw std::invalid_argument("a matrix needs n and k of at least 1");
        matrix.format = parse_format(format);
        const int64_t multiple = matrix.format == Format::float32    ? 1
                                 : matrix.format == Format::bfloat16 ? 2
                                                                     : kBlock;
        if (k % multiple != 0) {
            throw std::invalid_argument("k of a " + format + " matrix must be a multiple of " +
                                        std::to_string(multiple) + ", not " + std::to_string(k));
        }
        const int64_t tiles = (n + kTileRows - 1) / kTileRows;
        matrix.tiles = bytes("data", array, tiles * tile_bytes(matrix.format, k));
        matrix.n = n;
        matrix.k = k;
    }
    Array array;
    Matrix matrix{};
};

// Pages of one layer: [blocks, 2, elements], whose blocks may have those of other layers between.
struct PyCache {
    PyCache(Array blocks_, int64_t kv_heads, int64_t head_dim, int64_t block_size)
        : blocks(blocks_), kv_heads(kv_heads), head_dim(head_dim) {
        if (head_dim < 32 || head_dim % 32 != 0 || head_dim > kMaxHeadDim) {
            throw std::invalid_argument("head_dim must be a multiple of 32 up to " +
                                        std::to_string(kMaxHeadDim) + ", not " +
                                        std::to_string(head_dim));
        }
        if (block_size < 16 || block_size % 16 != 0) {
            throw std::invalid_argument("block_size must be a multiple of 16, not " +
                                        std::to_string(block_size));
        }
        cache.type = cache_type("blocks", blocks);
        const int64_t page = cache_page_bytes(cache.type, block_size, head_dim);
        const int64_t width = kv_heads * page;
        const auto item = static_cast<int64_t>(blocks.itemsize());
        check_blocks("blocks", blocks, 2, width / item);
        cache.keys = blocks.data();
        cache.values = static_cast<uint8_t*>(blocks.data()) + width;
        cache.blocks = static_cast<int64_t>(blocks.shape(0));
        cache.block_size = block_size;
        const int64_t apart = cache.blocks > 1 ? blocks.stride(0) * item : 2 * width;
        if (apart % page != 0) refuse("blocks", "are not whole pages of a head apart");
        cache.heads_apart = apart / page;
    }
    Array blocks;
    int64_t kv_heads, head_dim;
    Cache cache{};
};

// Checks the arrays of each call and keeps them alive; their rows bound the steps to come.
class PyProgram {
  public:
    explicit PyProgram(const std::string& kernels)
        : program_(std::make_shared<Program>(find_kernels(kernels))) {}
    PyProgram(const PyProgram&) = delete;
    PyProgram& operator=(const PyProgram&) = delete;

    // A late worker may still read the buffers that this keeps alive.
    ~PyProgram() {
        while (program_.use_count() > 1) std::this_thread::yield();
    }

    void embed(Array token_ids, const PyMatrix& table, Array out) {
        Embed call{};
        call.token_ids = integers("token_ids", token_ids, {kAny});
        call.table = table.matrix;
        call.out = floats("out", out, {kAny, table.matrix.k});
        program_->add(call);
        token_rows({token_ids, out});
        keep({table.array});
    }

    void gather_rows(Array source, Array rows, Array out) {
        GatherRows call{};
        check_same_type("out", float_type("out", out), float_type("source", source));
        check_shape("source", source, {kAny, kAny});
        const auto width = static_cast<int64_t>(source.shape(1));
        check_shape("out", out, {kAny, width});
        call.source = source.data();
        call.row_bytes = width * static_cast<int64_t>(source.itemsize());
        call.rows = integers("rows", rows, {kAny});
        call.out = out.data();
        program_->add(call);
        token_rows({source});
        sampled_rows({rows, out});
    }

    void norm(OptionalArray delta, Array residual, Array weight, float eps, OptionalArray gathered,
              Array out, bool sampled) {
        Norm call{};
        call.rows = sampled || gathered ? Rows::sampled : Rows::tokens;
        check_shape("weight", weight, {kAny});
        call.hidden = static_cast<int64_t>(weight.shape(0));
        call.weight = floats("weight", weight, {call.hidden});
        call.residual = floats("residual", residual, {kAny, call.hidden});
        call.eps = eps;
        if (delta) {
            call.delta_type = float_type("delta", *delta);
            check_shape("delta", *delta, {kAny, call.hidden});
            call.delta = delta->data();
            rows_of(sampled, {*delta});
        }
        if (gathered) {
            call.gathered = integers("sampled_tokens", *gathered, {kAny});
            sampled_rows({*gathered, out});
        }
        call.out_type = float_type("out", out);
        check_shape("out", out, {kAny, call.hidden});
        call.out = out.data();
        program_->add(call);
        rows_of(sampled, {residual});
        if (!gathered) rows_of(sampled, {out});
        keep({weight});
    }

    void linear(Array x, const PyMatrix& weight, OptionalArray bias, Array out, bool sampled,
                bool gated) {
        LinearCall call{};
        call.rows = sampled ? Rows::sampled : Rows::tokens;
        call.x_type = float_type("x", x);
        check_shape("x", x, {kAny, weight.matrix.k});
        call.x = x.data();
        call.weight = weight.matrix;
        if (bias) {
            call.bias = floats("bias", *bias, {weight.matrix.n});
            keep({*bias});
        }
        call.out_type = float_type("out", out);
        int64_t width = weight.matrix.n;
        if (gated) {
            if (width % (2 * kTileRows) != 0) {
                throw std::invalid_argument("a gated product needs a multiple of 64 rows, not " +
                                            std::to_string(width));
            }
            call.gated = true;
            width /= 2;
        }
        check_shape("out", out, {kAny, width});
        call.out = out.data();
        program_->add(call);
        rows_of(sampled, {x, out});
        keep({weight.array});
    }

    void rotary(Array qkv, Array cos_sin, OptionalArray query_norm, OptionalArray key_norm,
                float eps, int64_t num_heads, const PyCache& cache, Array positions, Array slots) {
        Rotary call{};
        call.heads = heads(num_heads, cache);
        call.cache = cache.cache;
        call.type = float_type("qkv", qkv);
        check_holds("qkv", call.type, cache.cache.type);
        check_shape("qkv", qkv, {kAny, (num_heads + 2 * cache.kv_heads) * cache.head_dim});
        call.qkv = qkv.data();
        call.cos_sin = floats("cos_sin", cos_sin, {kAny, cache.head_dim});
        call.max_position = static_cast<int64_t>(cos_sin.shape(0));
        if (query_norm.has_value() != key_norm.has_value()) {
            throw std::invalid_argument("queries and keys are normalised both or not at all");
        }
        if (query_norm) {
            call.query_norm = floats("query_norm", *query_norm, {cache.head_dim});
            call.key_norm = floats("key_norm", *key_norm, {cache.head_dim});
            keep({*query_norm, *key_norm});
        }
        call.eps = eps;
        call.positions = integers("positions", positions, {kAny});
        call.slots = integers("cache_slots", slots, {kAny});
        program_->add(call);
        token_rows({qkv, positions, slots});
        keep({cos_sin, cache.blocks});
    }

    void attention(Array qkv, float scale, int64_t window, int64_t num_heads, const PyCache& cache,
                   Array query_start, Array context_lengths, Array rows, Array block_tables,
                   Array out) {
        Attention call{};
        call.heads = heads(num_heads, cache);
        call.cache = cache.cache;
        call.scale = scale;
        if (window < 0) throw std::invalid_argument("a sliding window must not be negative");
        call.window = window;
        call.type = float_type("qkv", qkv);
        check_holds("qkv", call.type, cache.cache.type);
        check_shape("qkv", qkv, {kAny, (num_heads + 2 * cache.kv_heads) * cache.head_dim});
        call.qkv = qkv.data();
        call.query_start = integers("query_start", query_start, {kAny});
        call.context_lengths = integers("context_lengths", context_lengths, {kAny});
        call.rows = integers("rows", rows, {kAny});
        call.block_tables = integers("block_tables", block_tables, {kAny, kAny});
        call.max_rows = static_cast<int64_t>(block_tables.shape(0));
        call.max_blocks = static_cast<int64_t>(block_tables.shape(1));
        check_same_type("out", float_type("out", out), call.type);
        check_shape("out", out, {kAny, num_heads * cache.head_dim});
        call.out = out.data();
        program_->add(call);
        token_rows({qkv, out});
        sequence_rows({context_lengths, rows});
        program_->limit_sequences(static_cast<int64_t>(query_start.shape(0)) - 1);
        keep({cache.blocks, query_start, block_tables});
    }

    void activation(Array gate_up, Array out, bool sampled) {
        Activation call{};
        call.rows = sampled ? Rows::sampled : Rows::tokens;
        call.type = float_type("gate_up", gate_up);
        check_same_type("out", float_type("out", out), call.type);
        check_shape("out", out, {kAny, kAny});
        call.width = static_cast<int64_t>(out.shape(1));
        check_shape("gate_up", gate_up, {kAny, 2 * call.width});
        call.gate_up = gate_up.data();
        call.out = out.data();
        program_->add(call);
        rows_of(sampled, {gate_up, out});
    }

    void low_rank(Array x, Array down, Array up, Array pieces, Array scales, Array columns,
                  Array adapter_of_token, Array out) {
        LowRank call{};
        call.type = float_type("x", x);
        check_same_type("down", float_type("down", down), call.type);
        check_same_type("up", float_type("up", up), call.type);
        check_shape("down", down, {kAny, kAny});
        check_shape("up", up, {kAny});
        call.k = static_cast<int64_t>(down.shape(1));
        check_shape("x", x, {kAny, call.k});
        call.pieces = wide_integers("pieces", pieces, {kAny, kAny, 3});
        call.adapters = static_cast<int64_t>(pieces.shape(0));
        call.projections = static_cast<int64_t>(pieces.shape(1));
        if (call.projections < 1) refuse("pieces", "has no projections");
        call.scales = floats("scales", scales, {call.adapters, call.projections});
        call.columns = wide_integers("columns", columns, {call.projections + 1});
        call.adapter_of_token = integers("adapter_of_token", adapter_of_token, {kAny});
        check_shape("out", out, {kAny, call.columns[call.projections]});
        call.out_type = float_type("out", out);
        call.x = x.data();
        call.down = down.data();
        call.up = up.data();
        call.out = out.data();
        call.most_rows = check_pieces(call, static_cast<int64_t>(down.shape(0)),
                                      static_cast<int64_t>(up.shape(0)));
        program_->add(call);
        token_rows({x, adapter_of_token, out});
        keep({down, up, pieces, scales, columns});
    }

    int64_t scratch_bytes() const { return program_->scratch_bytes(); }

    void set_scratch(Array scratch) {
        program_->set_scratch(bytes("scratch", scratch, kAny),
                             static_cast<int64_t>(scratch.shape(0)));
        keep({scratch});
    }

    std::vector<PyShape> linear_shapes() const {
        std::vector<PyShape> shapes;
        for (const auto& [format, n, k, gated] : program_->linear_shapes()) {
            shapes.emplace_back(format_name(format), n, k, gated);
        }
        return shapes;
    }

    PyPlan plan(const PyShape& shape, int64_t rows) const {
        const LinearPlan& found = program_->plan(parse_shape(shape), rows);
        return {found.most_rows, found.chunk_rows, found.split_by_rows, found.packs_privately};
    }

    void set_plan(const PyShape& shape, int64_t rows, const PyPlan& plan) {
        const auto [most_rows, chunk_rows, split_by_rows, packs_privately] = plan;
        program_->set_plan(parse_shape(shape), rows,
                           {most_rows, chunk_rows, split_by_rows, packs_privately});
    }

    int64_t most_rows(const PyShape& shape) const {
        return program_->most_rows(parse_shape(shape));
    }

    bool has_rows(const std::string& format, int64_t rows) const {
        return program_->has_rows(parse_format(format), rows);
    }

    int64_t run_linears(ThreadPool& pool, const PyShape& shape, int64_t rows, int64_t most_calls) {
        return program_->run_linears(pool, parse_shape(shape), rows, most_calls);
    }

    void run(ThreadPool& pool, int32_t tokens, int32_t sequences, int32_t sampled) {
        program_->run(pool, Step{tokens, sequences, sampled});
    }

    void set_profiling(bool on) { program_->set_profiling(on); }
    std::vector<std::pair<std::string, double>> profile() const { return program_->profile(); }
    std::vector<std::pair<std::string, int64_t>> linear_bytes() const {
        return program_->linear_bytes();
    }

  private:
    // Every piece lies inside `down` and `up`; an adapter's rows are consecutive. The most of them.
    static int64_t check_pieces(const LowRank& call, int64_t rows, int64_t elements) {
        int64_t most = 0;
        for (int64_t a = 0; a < call.adapters; ++a) {
            const int64_t* own = call.pieces + a * call.projections * 3;
            int64_t row = own[0];
            for (int64_t p = 0; p < call.projections; ++p) {
                const int64_t* piece = own + p * 3;
                const int64_t width = call.columns[p + 1] - call.columns[p];
                if (piece[0] != row || piece[0] < 0 || piece[1] < 0 || piece[2] < 0 || width < 0 ||
                    piece[1] > rows - row || piece[1] * width > elements - piece[2]) {
                    refuse("pieces", "name rows or elements that do not exist, or with gaps");
                }
                row += piece[1];
            }
            most = std::max(most, row - own[0]);
        }
        return most;
    }

    static Heads heads(int64_t num_heads, const PyCache& cache) {
        if (num_heads < 1 || num_heads % cache.kv_heads != 0) {
            throw std::invalid_argument("the number of heads must be a multiple of " +
                                        std::to_string(cache.kv_heads) + ", not " +
                                        std::to_string(num_heads));
        }
        return Heads{num_heads, cache.kv_heads, cache.head_dim};
    }

    void token_rows(std::initializer_list<Array> arrays) {
        for (const Array& array : arrays) {
            program_->limit_tokens(static_cast<int64_t>(array.shape(0)));
        }
        keep(arrays);
    }

    void sequence_rows(std::initializer_list<Array> arrays) {
        for (const Array& array : arrays) {
            program_->limit_sequences(static_cast<int64_t>(array.shape(0)));
        }
        keep(arrays);
    }

    void sampled_rows(std::initializer_list<Array> arrays) {
        for (const Array& array : arrays) {
            program_->limit_sampled(static_cast<int64_t>(array.shape(0)));
        }
        keep(arrays);
    }

    void rows_of(bool sampled, std::initializer_list<Array> arrays) {
        sampled ? sampled_rows(arrays) : token_rows(arrays);
    }

    void keep(std::initializer_list<Array> arrays) {
        kept_.insert(kept_.end(), arrays.begin(), arrays.end());
    }

    std::shared_ptr<Program> program_;
    std::vector<Array> kept_;
};

}  // namespace
}  // namespace headrace

NB_MODULE(_native, module) {
    using namespace headrace;
    using namespace nanobind::literals;

    module.def("supported_kernels", [] {
        std::vector<std::string> names;
        for (const KernelTable* table : supported_kernels()) names.emplace_back(table->name);
        return names;
    }, "Instruction sets with kernels that this machine can run, the fastest first.");

    nb::class_<ThreadPool>(module, "ThreadPool")
        .def("__init__", [](ThreadPool* self, int threads, const std::vector<int>& cpus) {
            if (threads < 1 || threads > 1024) {
                throw std::invalid_argument("threads must be from 1 to 1024, not " +
                                            std::to_string(threads));
            }
            if (!cpus.empty() && cpus.size() != static_cast<size_t>(threads)) {
                throw std::invalid_argument("a pinned pool needs one CPU for each thread");
            }
            new (self) ThreadPool(threads, cpus);
        }, "threads"_a, "cpus"_a = std::vector<int>{})
        .def_prop_ro("size", &ThreadPool::size);

    nb::class_<PyMatrix>(module, "Matrix")
        .def(nb::init<Array, const std::string&, int64_t, int64_t>(), "data"_a.noconvert(),
             "format"_a, "n"_a, "k"_a);

    nb::class_<PyCache>(module, "Cache")
        .def(nb::init<Array, int64_t, int64_t, int64_t>(), "blocks"_a.noconvert(), "kv_heads"_a,
             "head_dim"_a, "block_size"_a);

    nb::class_<PyProgram>(module, "Program")
        .def(nb::init<const std::string&>(), "kernels"_a)
        .def("embed", &PyProgram::embed, "token_ids"_a.noconvert(), "table"_a,
             "out"_a.noconvert())
        .def("gather_rows", &PyProgram::gather_rows, "source"_a.noconvert(), "rows"_a.noconvert(),
             "out"_a.noconvert())
        .def("norm", &PyProgram::norm, "delta"_a.noconvert().none(), "residual"_a.noconvert(),
             "weight"_a.noconvert(), "eps"_a, "sampled_tokens"_a.noconvert().none(),
             "out"_a.noconvert(), "sampled"_a = false)
        .def("linear", &PyProgram::linear, "x"_a.noconvert(), "weight"_a,
             "bias"_a.noconvert().none(), "out"_a.noconvert(), "sampled"_a,
             "gated"_a = false)
        .def("rotary", &PyProgram::rotary, "qkv"_a.noconvert(), "cos_sin"_a.noconvert(),
             "query_norm"_a.noconvert().none(), "key_norm"_a.noconvert().none(), "eps"_a,
             "num_heads"_a, "cache"_a, "positions"_a.noconvert(), "cache_slots"_a.noconvert())
        .def("attention", &PyProgram::attention, "qkv"_a.noconvert(), "scale"_a, "window"_a,
             "num_heads"_a, "cache"_a, "query_start"_a.noconvert(),
             "context_lengths"_a.noconvert(), "rows"_a.noconvert(), "block_tables"_a.noconvert(),
             "out"_a.noconvert())
        .def("activation", &PyProgram::activation, "gate_up"_a.noconvert(), "out"_a.noconvert(),
             "sampled"_a = false)
        .def("low_rank", &PyProgram::low_rank, "x"_a.noconvert(), "down"_a.noconvert(),
             "up"_a.noconvert(), "pieces"_a.noconvert(), "scales"_a.noconvert(),
             "columns"_a.noconvert(), "adapter_of_token"_a.noconvert(), "out"_a.noconvert())
        .def_prop_ro("scratch_bytes", &PyProgram::scratch_bytes)
        .def("set_scratch", &PyProgram::set_scratch, "scratch"_a.noconvert())
        .def("run", &PyProgram::run, "pool"_a, "tokens"_a, "sequences"_a, "sampled"_a,
             nb::call_guard<nb::gil_scoped_release>())
        .def("linear_shapes", &PyProgram::linear_shapes)
        .def("plan", &PyProgram::plan, "shape"_a, "rows"_a)
        .def("set_plan", &PyProgram::set_plan, "shape"_a, "rows"_a, "plan"_a)
        .def("most_rows", &PyProgram::most_rows, "shape"_a)
        .def("has_rows", &PyProgram::has_rows, "format"_a, "rows"_a)
        .def("run_linears", &PyProgram::run_linears, "pool"_a, "shape"_a, "rows"_a,
             "most_calls"_a, nb::call_guard<nb::gil_scoped_release>())
        .def("set_profiling", &PyProgram::set_profiling, "on"_a)
        .def("profile", &PyProgram::profile)
        .def("linear_bytes", &PyProgram::linear_bytes);

    bind_sampling(module);
}
