// Embedding lookup out of an interleaved matrix, which the head may share, and rows out of a buffer.
#include "kernel_table.hpp"
#include "vector.hpp"

namespace headrace::HEADRACE_ISA {
namespace {

HEADRACE_INLINE float half_at(const uint8_t* p) {
    uint16_t bits;
    __builtin_memcpy(&bits, p, 2);
    return _cvtsh_ss(bits);
}

void read_dense_row(const Matrix& table, const uint8_t* tile, int64_t column, float* out) {
    const int64_t per_unit = table.format == Format::float32 ? 1 : 2;
    for (int64_t k = 0; k < table.k; ++k) {
        const uint8_t* unit = tile + (k / per_unit * kTileRows + column) * 4;
        if (table.format == Format::float32) {
            __builtin_memcpy(out + k, unit, 4);
        } else {
            uint16_t bits;
            __builtin_memcpy(&bits, unit + k % 2 * 2, 2);
            out[k] = bf16_to_float(bits);
        }
    }
}

void read_block_row(const Matrix& table, const uint8_t* tile, int64_t column, float* out) {
    const bool has_minimum = table.format == Format::q4_1;
    for (int64_t k = 0; k < table.k; k += kBlock) {
        const float scale = half_at(tile + column * 2);
        const float least = has_minimum ? half_at(tile + 64 + column * 2) : 0.0f;
        const uint8_t* units = tile + (has_minimum ? 128 : 64) + column * 4;
        for (int i = 0; i < kBlock; ++i) {
            int quant;
            if (table.format == Format::q8_0) {
                quant = units[i / 4 * kTileRows * 4 + i % 4] - 128;
            } else {
                const uint8_t both = units[i % 16 / 4 * kTileRows * 4 + i % 4];
                quant = i < 16 ? both & 15 : both >> 4;
                if (!has_minimum) quant -= 8;
            }
            out[k + i] = scale * static_cast<float>(quant) + least;
        }
        tile += tile_bytes(table.format, kBlock);
    }
}

}  // namespace

void embed(const Embed& call, const Step& step, Worker& worker) {
    const Matrix& table = call.table;
    int64_t t = 0;
    while (worker.take(step.tokens, t)) {
        const int64_t id = call.token_ids[t];
        const uint8_t* tile = table.tiles + id / kTileRows * tile_bytes(table.format, table.k);
        float* out = call.out + t * table.k;
        if (table.format == Format::float32 || table.format == Format::bfloat16) {
            read_dense_row(table, tile, id % kTileRows, out);
        } else {
            read_block_row(table, tile, id % kTileRows, out);
        }
    }
}

void gather_rows(const GatherRows& call, const Step& step, Worker& worker) {
    const auto* source = static_cast<const uint8_t*>(call.source);
    auto* out = static_cast<uint8_t*>(call.out);
    int64_t r = 0;
    while (worker.take(step.sampled, r)) {
        __builtin_memcpy(out + r * call.row_bytes, source + call.rows[r] * call.row_bytes,
                         static_cast<size_t>(call.row_bytes));
    }
}

}  // namespace headrace::HEADRACE_ISA
