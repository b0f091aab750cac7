// A block's keys and values in 8 bits: 16 positions of a head at a time, then their scales.
//
//   keys    [kv_heads][block/16]{[head_dim/4][16][4] quant + 128, scale[16] float32}
//   values  [kv_heads][block/16]{[16/4][head_dim][4] quant,       scale[16] float32}
//
// A key or value is quant * scale with a quant from -127 to 127; the scale is NaN where an element
// is no finite number.
#pragma once

#include "kernel_table.hpp"
#include "vector.hpp"

namespace headrace::HEADRACE_ISA {

constexpr int64_t kInt8Group = 16;

HEADRACE_INLINE int64_t int8_group_bytes(int64_t dim) {
    return kInt8Group * (dim + static_cast<int64_t>(sizeof(float)));
}

// Rounds a head to signed bytes; returns its scale.
HEADRACE_INLINE float quantize_head(const float* head, int64_t dim, int8_t* quants) {
    Floats largest = zeros(), sum = zeros();
    for (int64_t i = 0; i < dim; i += kWidth) {
        const Floats value = load(head + i);
        largest = maximum(largest, absolute(value));
        sum = add(sum, value);
    }
    const float most = reduce_max(largest), total = reduce_add(sum);
    const Floats inverse = broadcast(most > 1e-30f ? 127.0f / most : 0.0f);
    for (int64_t i = 0; i < dim; i += kWidth) {
        store_bytes(quants + i, to_ints(mul(load(head + i), inverse)));
    }
    return most / 127.0f + (total - total);
}

// Writes what a slot's head holds.
HEADRACE_INLINE void write_int8(const Cache& cache, const Heads& heads, int64_t slot, int64_t head,
                                const float* key, const float* value) {
    const int64_t block = slot / cache.block_size, offset = slot % cache.block_size;
    const int64_t group = (block * cache.heads_apart + head) * (cache.block_size / kInt8Group) +
                          offset / kInt8Group;
    const int64_t place = offset % kInt8Group, dim = heads.dim;
    auto* keys = static_cast<uint8_t*>(cache.keys) + group * int8_group_bytes(dim);
    auto* values = static_cast<uint8_t*>(cache.values) + group * int8_group_bytes(dim);
    alignas(64) int8_t quants[kMaxHeadDim];
    const float key_scale = quantize_head(key, dim, quants);
    for (int64_t i = 0; i < dim; i += 4) {
        uint32_t unit;
        __builtin_memcpy(&unit, quants + i, 4);
        unit ^= 0x80808080u;
        __builtin_memcpy(keys + i * kInt8Group + place * 4, &unit, 4);
    }
    const float value_scale = quantize_head(value, dim, quants);
    auto* bytes = values + place / 4 * 4 * dim + place % 4;
    for (int64_t i = 0; i < dim; ++i) bytes[i * 4] = static_cast<uint8_t>(quants[i]);
    reinterpret_cast<float*>(keys + kInt8Group * dim)[place] = key_scale;
    reinterpret_cast<float*>(values + kInt8Group * dim)[place] = value_scale;
}

}  // namespace headrace::HEADRACE_ISA
