// Head norms, rotation by halves (arXiv:2104.09864) and the write of keys and values to pages.
#include "../attention/int8_pages.hpp"
#include "kernel_table.hpp"
#include "vector.hpp"

namespace headrace::HEADRACE_ISA {
namespace {

constexpr int64_t kGroup = 16;  // positions that a key vector interleaves

// One head, normalised if `weight` is given and rotated, in float32; `out` may be `head`.
template <class D, class Out>
HEADRACE_INLINE void rotate_head(const typename D::Storage* head, const float* weight, float eps,
                                 const float* cos_sin, int64_t dim, typename Out::Storage* out) {
    const int64_t half = dim / 2;
    Floats inverse = broadcast(1.0f);
    if (weight != nullptr) {
        Floats squares = zeros();
        for (int64_t i = 0; i < dim; i += kWidth) {
            const Floats value = D::load_floats(head + i);
            squares = fma(value, value, squares);
        }
        const float mean = reduce_add(squares) / static_cast<float>(dim);
        inverse = broadcast(1.0f / __builtin_sqrtf(mean + eps));
    }
    for (int64_t i = 0; i < half; i += kWidth) {
        Floats low = D::load_floats(head + i), high = D::load_floats(head + half + i);
        if (weight != nullptr) {
            low = mul(mul(low, inverse), load(weight + i));
            high = mul(mul(high, inverse), load(weight + half + i));
        }
        const Floats cos = load(cos_sin + i), sin = load(cos_sin + half + i);
        Out::store_floats(out + i, sub(mul(low, cos), mul(high, sin)));
        Out::store_floats(out + half + i, add(mul(high, cos), mul(low, sin)));
    }
}

// Where a slot's key or value begins in its page; consecutive units, or dimensions, lie kGroup
// units, or one unit, apart.
template <class D>
struct Place {
    using Storage = typename D::Storage;
    static constexpr int64_t kPerUnit = 4 / sizeof(Storage);

    Place(const Cache& cache, const Heads& heads, int64_t slot, int64_t head) {
        const int64_t block = slot / cache.block_size, offset = slot % cache.block_size;
        const int64_t page = (block * cache.heads_apart + head) * cache.block_size;
        key = static_cast<Storage*>(cache.keys) + (page + offset / kGroup * kGroup) * heads.dim +
              offset % kGroup * kPerUnit;
        value = static_cast<Storage*>(cache.values) +
                (page + offset / kPerUnit * kPerUnit) * heads.dim + offset % kPerUnit;
    }

    // A token's key touches as many lines as it has units: too many to wait for one by one.
    HEADRACE_INLINE_MEMBER void fetch(int64_t dim) const {
        for (int64_t i = 0; i < dim; i += kPerUnit) __builtin_prefetch(key + i * kGroup, 1);
        for (int64_t i = 0; i < dim; i += kGroup) __builtin_prefetch(value + i * kPerUnit, 1);
    }

    void write(const Storage* new_key, const Storage* new_value, int64_t dim) const {
        for (int64_t i = 0; i < dim; i += kPerUnit) {
            __builtin_memcpy(key + i * kGroup, new_key + i, 4);
        }
        for (int64_t i = 0; i < dim; ++i) value[i * kPerUnit] = new_value[i];
    }

    Storage* key;
    Storage* value;
};

// The token's part of a step: query heads in place, key and value heads as `write` wants them,
// keys rotated to KeyType.
template <class D, class KeyType, class Write>
HEADRACE_INLINE void rotate_token(const Rotary& call, int64_t t, const Write& write) {
    const Heads& heads = call.heads;
    auto* query = static_cast<typename D::Storage*>(call.qkv) +
                  t * (heads.query + 2 * heads.kv) * heads.dim;
    const auto* key = query + heads.query * heads.dim;
    const auto* value = key + heads.kv * heads.dim;
    const float* cos_sin = call.cos_sin + static_cast<int64_t>(call.positions[t]) * heads.dim;
    for (int64_t h = 0; h < heads.query; ++h) {
        auto* head = query + h * heads.dim;
        rotate_head<D, D>(head, call.query_norm, call.eps, cos_sin, heads.dim, head);
    }
    alignas(64) typename KeyType::Storage rotated[kMaxHeadDim];
    for (int64_t h = 0; h < heads.kv; ++h) {
        rotate_head<D, KeyType>(key + h * heads.dim, call.key_norm, call.eps, cos_sin, heads.dim,
                                rotated);
        write(h, rotated, value + h * heads.dim);
    }
}

// Inlined by force: GCC takes a function that only fetches for one without effect, and drops it.
template <class D>
HEADRACE_INLINE void fetch_places(const Rotary& call, int64_t t) {
    for (int64_t h = 0; h < call.heads.kv; ++h) {
        Place<D>(call.cache, call.heads, call.slots[t], h).fetch(call.heads.dim);
    }
}

template <class D>
void rotate_tokens(const Rotary& call, const Step& step, Worker& worker) {
    int64_t begin = 0, end = 0;
    while (worker.take_run(step.tokens, begin, end)) {
        fetch_places<D>(call, begin);
        for (int64_t t = begin; t < end; ++t) {
            // A neighbour's place lies in the same lines.
            const bool apart = t + 1 < end && call.slots[t + 1] != call.slots[t] + 1;
            if (apart) fetch_places<D>(call, t + 1);
            rotate_token<D, D>(call, t, [&](int64_t h, const auto* key, const auto* value) {
                Place<D>(call.cache, call.heads, call.slots[t], h)
                    .write(key, value, call.heads.dim);
            });
        }
    }
}

template <class D>
void rotate_tokens_to_int8(const Rotary& call, const Step& step, Worker& worker) {
    const int64_t dim = call.heads.dim;
    int64_t begin = 0, end = 0;
    while (worker.take_run(step.tokens, begin, end)) {
        for (int64_t t = begin; t < end; ++t) {
            rotate_token<D, Float32>(call, t, [&](int64_t h, const float* key, const auto* value) {
                alignas(64) float wide[kMaxHeadDim];
                for (int64_t i = 0; i < dim; i += kWidth) {
                    store(wide + i, D::load_floats(value + i));
                }
                write_int8(call.cache, call.heads, call.slots[t], h, key, wide);
            });
        }
    }
}

}  // namespace

void rotary(const Rotary& call, const Step& step, Worker& worker) {
    const bool wide = call.type == Type::float32;
    if (call.cache.type == Type::int8) {
        (wide ? rotate_tokens_to_int8<Float32> : rotate_tokens_to_int8<BFloat16>)(call, step,
                                                                                  worker);
    } else {
        (wide ? rotate_tokens<Float32> : rotate_tokens<BFloat16>)(call, step, worker);
    }
}

}  // namespace headrace::HEADRACE_ISA
