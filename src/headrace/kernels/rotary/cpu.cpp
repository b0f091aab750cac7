// Head norms, rotation by halves (arXiv:2104.09864) and the write of keys and values to pages.
#include "kernel_table.hpp"
#include "vector.hpp"

namespace headrace::HEADRACE_ISA {
namespace {

constexpr int64_t kGroup = 16;  // positions that a key vector interleaves

// One head, normalised if `weight` is given and rotated, in float32.
template <class D>
HEADRACE_INLINE void rotate_head(const typename D::Storage* head, const float* weight, float eps,
                                 const float* cos_sin, int64_t dim, float* rotated) {
    const int64_t half = dim / 2;
    for (int64_t i = 0; i < dim; i += kWidth) store(rotated + i, D::load_floats(head + i));
    if (weight != nullptr) {
        Floats squares = zeros();
        for (int64_t i = 0; i < dim; i += kWidth) {
            squares = fma(load(rotated + i), load(rotated + i), squares);
        }
        const float mean = reduce_add(squares) / static_cast<float>(dim);
        const Floats inverse = broadcast(1.0f / __builtin_sqrtf(mean + eps));
        for (int64_t i = 0; i < dim; i += kWidth) {
            store(rotated + i, mul(mul(load(rotated + i), inverse), load(weight + i)));
        }
    }
    for (int64_t i = 0; i < half; i += kWidth) {
        const Floats low = load(rotated + i), high = load(rotated + half + i);
        const Floats cos = load(cos_sin + i), sin = load(cos_sin + half + i);
        store(rotated + i, sub(mul(low, cos), mul(high, sin)));
        store(rotated + half + i, add(mul(high, cos), mul(low, sin)));
    }
}

template <class D>
HEADRACE_INLINE void write_key(const Cache& cache, const Heads& heads, int64_t slot, int64_t head,
                               const float* key) {
    constexpr int64_t per_unit = 4 / sizeof(typename D::Storage);
    const int64_t block = slot / cache.block_size, offset = slot % cache.block_size;
    auto* page = static_cast<typename D::Storage*>(cache.keys) +
                 ((block * heads.kv + head) * cache.block_size + offset / kGroup * kGroup) *
                     heads.dim +
                 offset % kGroup * per_unit;
    for (int64_t unit = 0; unit < heads.dim / per_unit; ++unit) {
        for (int64_t i = 0; i < per_unit; ++i) {
            page[unit * kGroup * per_unit + i] = D::narrow(key[unit * per_unit + i]);
        }
    }
}

template <class D>
HEADRACE_INLINE void write_value(const Cache& cache, const Heads& heads, int64_t slot,
                                 int64_t head, const typename D::Storage* value) {
    constexpr int64_t per_unit = 4 / sizeof(typename D::Storage);
    const int64_t block = slot / cache.block_size, offset = slot % cache.block_size;
    auto* page = static_cast<typename D::Storage*>(cache.values) +
                 ((block * heads.kv + head) * cache.block_size + offset / per_unit * per_unit) *
                     heads.dim +
                 offset % per_unit;
    for (int64_t i = 0; i < heads.dim; ++i) page[i * per_unit] = value[i];
}

template <class D>
void rotate_tokens(const Rotary& call, const Step& step, Worker& worker) {
    const Heads& heads = call.heads;
    const int64_t width = (heads.query + 2 * heads.kv) * heads.dim;
    int64_t t = 0;
    while (worker.take(step.tokens, t)) {
        auto* query = static_cast<typename D::Storage*>(call.qkv) + t * width;
        const auto* key = query + heads.query * heads.dim;
        const auto* value = key + heads.kv * heads.dim;
        const float* cos_sin = call.cos_sin + static_cast<int64_t>(call.positions[t]) * heads.dim;
        alignas(64) float rotated[kMaxHeadDim];
        for (int64_t h = 0; h < heads.query; ++h) {
            auto* head = query + h * heads.dim;
            rotate_head<D>(head, call.query_norm, call.eps, cos_sin, heads.dim, rotated);
            for (int64_t i = 0; i < heads.dim; i += kWidth) {
                D::store_floats(head + i, load(rotated + i));
            }
        }
        for (int64_t h = 0; h < heads.kv; ++h) {
            rotate_head<D>(key + h * heads.dim, call.key_norm, call.eps, cos_sin, heads.dim,
                           rotated);
            write_key<D>(call.cache, heads, call.slots[t], h, rotated);
            write_value<D>(call.cache, heads, call.slots[t], h, value + h * heads.dim);
        }
    }
}

}  // namespace

void rotary(const Rotary& call, const Step& step, Worker& worker) {
    (call.cache.type == Type::float32 ? rotate_tokens<Float32> : rotate_tokens<BFloat16>)(
        call, step, worker);
}

}  // namespace headrace::HEADRACE_ISA
