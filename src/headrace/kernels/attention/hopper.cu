// Attention of whole prompts on Hopper (sm_90a): sequences of one length, nothing of them cached.
//
// FlashAttention-3's schedule (Shah et al., arXiv:2407.08608): a producer thread asks the copy engine
// for tiles of keys and values; each of two warpgroups holds 64 rows, (token, head of the group)
// pairs that share a KV head, and multiplies the next tile's scores and this tile's values while it
// computes the softmax between them. Programs walk over (tile of rows, sequence, KV head), those with
// the longest contexts first.
//
// hopper.py puts in front: ../hopper.cuh, kHeadDim, kGroup, and multiply_scores() and
// multiply_values(), one wgmma instruction each.

constexpr int kRows = 128, kKeys = 128, kStages = 2;
constexpr int kTokens = kRows / kGroup;
constexpr int kPanels = kHeadDim / 64;
// 64 elements of each of 128 rows.
constexpr int kPanelBytes = 128 * 128;
constexpr int kTileBytes = kPanels * kPanelBytes;

struct Item {
    int start, sequence, kv_head, key_tiles;
};

// Items in order of falling contexts are dealt out to programs forth and back.
__device__ __forceinline__ bool item_of(int round, int sequences, int length, int kv_heads, Item& item) {
    const int tiles = (length + kTokens - 1) / kTokens, each = sequences * kv_heads;
    const int place = round % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
    const int index = round * gridDim.x + place;
    if (index >= tiles * each) return false;
    item.start = (tiles - 1 - index / each) * kTokens;
    item.sequence = index % each / kv_heads;
    item.kv_head = index % kv_heads;
    item.key_tiles = (min(item.start + kTokens, length) + kKeys - 1) / kKeys;
    return true;
}

__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, 2));
}

__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(0xFFFFFFFFu, x, 1);
    return x + __shfl_xor_sync(0xFFFFFFFFu, x, 2);
}

// The running softmax of a thread's two rows, eight apart; sums are of the thread's own keys.
struct Softmax {
    float maximum[2], total[2], correction[2];
};

__device__ __forceinline__ void soften(float (&scores)[kKeys / 2], Softmax& state, float scale_log2, bool first) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float highest = scores[2 * half];
#pragma unroll
        for (int i = 0; i < kKeys / 8; ++i) {
            highest = fmaxf(highest, fmaxf(scores[4 * i + 2 * half], scores[4 * i + 2 * half + 1]));
        }
        highest = quad_max(highest) * scale_log2;
        if (!first) highest = fmaxf(highest, state.maximum[half]);
        state.correction[half] = first ? 0.0f : exp2_fast(state.maximum[half] - highest);
        state.maximum[half] = highest;
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < kKeys / 8; ++i) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const int at = 4 * i + 2 * half + e;
                scores[at] = exp2_fast(fmaf(scores[at], scale_log2, -highest));
                sum += scores[at];
            }
        }
        state.total[half] = first ? sum : fmaf(state.total[half], state.correction[half], sum);
    }
}

__device__ __forceinline__ void start_scores(float (&scores)[kKeys / 2], u32 query, u32 keys) {
    hold(scores);
    begin_products();
#pragma unroll
    for (int k = 0; k < kHeadDim / 16; ++k) {
        const int at = k / 4 * kPanelBytes + k % 4 * 32;
        multiply_scores(scores, matrix_descriptor(query + at), matrix_descriptor(keys + at), k > 0);
    }
    commit_products();
    hold(scores);
}

__device__ __forceinline__ void start_result(float (&result)[kHeadDim / 2], u32 (&weights)[kKeys / 4], u32 values, bool first) {
    hold(result);
    hold(weights);
    begin_products();
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
        multiply_values(result, weights + 4 * k, transposed_descriptor(values + k * 2048, kPanelBytes), !first || k > 0);
    }
    commit_products();
    hold(result);
    hold(weights);
}

__device__ __forceinline__ void pack_weights(const float (&scores)[kKeys / 2], u32 (&weights)[kKeys / 4]) {
#pragma unroll
    for (int i = 0; i < kKeys / 4; ++i) weights[i] = pack(scores[2 * i], scores[2 * i + 1]);
}

__device__ __forceinline__ void write_rows(
    const float (&result)[kHeadDim / 2], const Softmax& state, unsigned short* out, long long out_stride, const Item& item, int length,
    int row) {
    const int q = threadIdx.x % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int token = item.start + (row + 8 * half) / kGroup, head = (row + 8 * half) % kGroup;
        const float share = 1.0f / quad_sum(state.total[half]);
        unsigned short* target = out + (static_cast<long long>(item.sequence) * length + token) * out_stride +
                                 (item.kv_head * kGroup + head) * kHeadDim;
#pragma unroll
        for (int i = 0; i < kHeadDim / 32; ++i) {
            u32 words[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const int at = 4 * (4 * i + j) + 2 * half;
                words[j] = pack(result[at] * share, result[at + 1] * share);
            }
            transpose_quad(words, q);
            if (token < length) {
                *reinterpret_cast<uint4*>(target + 32 * i + 8 * q) = make_uint4(words[0], words[1], words[2], words[3]);
            }
        }
    }
}

// A ring of buffers with a barrier that fills and one that empties each.
struct Ring {
    u32 full, empty, memory;
    int stage = 0;
    u32 phase = 0;

    __device__ __forceinline__ Ring(u32 barriers, u32 memory) : full(barriers), empty(barriers + 8 * kStages), memory(memory) {}
    __device__ __forceinline__ void init() const {
        for (int s = 0; s < kStages; ++s) barrier_init(full + 8 * s, 1), barrier_init(empty + 8 * s, 2);
    }
    __device__ __forceinline__ u32 buffer() const { return memory + stage * kTileBytes; }
    __device__ __forceinline__ u32 filled() const { return full + 8 * stage; }
    __device__ __forceinline__ void wait_filled() const { barrier_wait(full + 8 * stage, phase); }
    __device__ __forceinline__ void begin_fill() const {
        barrier_wait(empty + 8 * stage, phase ^ 1);
        barrier_expect(full + 8 * stage, kTileBytes);
    }
    __device__ __forceinline__ void advance() {
        if (++stage == kStages) stage = 0, phase ^= 1;
    }
    __device__ __forceinline__ void release(bool arrives) {
        if (arrives) barrier_arrive(empty + 8 * stage);
        advance();
    }
};

// Maps have dimensions (element, head, token of a sequence, sequence).
extern "C" __global__ void __launch_bounds__(384, 1) hopper_attention(
    const __grid_constant__ TensorMap queries, const __grid_constant__ TensorMap keys, const __grid_constant__ TensorMap values,
    unsigned short* out, long long out_stride, int sequences, int length, int kv_heads, float scale_log2) {
    extern __shared__ unsigned char memory[];
    __shared__ __align__(8) u64 barriers[3 * 2 * kStages];
    const u32 tiles = (shared_address(memory) + 1023) & ~1023u, first_barrier = shared_address(barriers);
    Ring query_ring(first_barrier, tiles);
    Ring key_ring(first_barrier + 16 * kStages, tiles + kStages * kTileBytes);
    Ring value_ring(first_barrier + 32 * kStages, tiles + 2 * kStages * kTileBytes);
    start_dependents();
    if (threadIdx.x == 0) {
        query_ring.init(), key_ring.init(), value_ring.init();
        publish_barriers();
    }
    __syncthreads();
    const int warpgroup = threadIdx.x / 128;
    Item item;
    if (warpgroup == 0) {
        give_registers();
        if (threadIdx.x != 0) return;
        wait_for_inputs();
        for (int round = 0; item_of(round, sequences, length, kv_heads, item); ++round) {
            query_ring.begin_fill();
            for (int panel = 0; panel < kPanels; ++panel) {
                load_tile(query_ring.buffer() + panel * kPanelBytes, &queries, query_ring.filled(), panel * 64,
                          item.kv_head * kGroup, item.start, item.sequence);
            }
            query_ring.advance();
            for (int tile = item.key_tiles - 1; tile >= 0; --tile) {
                key_ring.begin_fill();
                for (int panel = 0; panel < kPanels; ++panel) {
                    load_tile(key_ring.buffer() + panel * kPanelBytes, &keys, key_ring.filled(), panel * 64, item.kv_head, tile * kKeys,
                              item.sequence);
                }
                key_ring.advance();
                value_ring.begin_fill();
                for (int panel = 0; panel < kPanels; ++panel) {
                    load_tile(value_ring.buffer() + panel * kPanelBytes, &values, value_ring.filled(), panel * 64, item.kv_head,
                              tile * kKeys, item.sequence);
                }
                value_ring.advance();
            }
        }
        return;
    }
    take_registers();
    wait_for_inputs();
    const int group = warpgroup - 1, lane = threadIdx.x % 32;
    const int row = group * 64 + threadIdx.x / 32 % 4 * 16 + lane / 4;
    const bool arrives = threadIdx.x % 128 == 0;
    float scores[kKeys / 2], result[kHeadDim / 2];
    u32 weights[kKeys / 4];
    Softmax state;
    for (int round = 0; item_of(round, sequences, length, kv_heads, item); ++round) {
        query_ring.wait_filled();
        const u32 query = query_ring.buffer() + group * (kPanelBytes / 2);
        key_ring.wait_filled();
        start_scores(scores, query, key_ring.buffer());
        wait_for_products<0>();
        hold(scores);
        key_ring.release(arrives);
        const int first_key = (item.key_tiles - 1) * kKeys + 2 * (lane % 4);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int position = item.start + (row + 8 * half) / kGroup;
#pragma unroll
            for (int i = 0; i < kKeys / 8; ++i) {
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    if (first_key + 8 * i + e > position) scores[4 * i + 2 * half + e] = -1.0e30f;
                }
            }
        }
        soften(scores, state, scale_log2, true);
        pack_weights(scores, weights);
        for (int tile = 1; tile < item.key_tiles; ++tile) {
            key_ring.wait_filled();
            start_scores(scores, query, key_ring.buffer());
            value_ring.wait_filled();
            start_result(result, weights, value_ring.buffer(), tile == 1);
            wait_for_products<1>();
            hold(scores);
            key_ring.release(arrives);
            soften(scores, state, scale_log2, false);
            wait_for_products<0>();
            hold(result);
            hold(weights);
            value_ring.release(arrives);
#pragma unroll
            for (int i = 0; i < kHeadDim / 2; ++i) result[i] *= state.correction[i / 2 % 2];
            pack_weights(scores, weights);
        }
        query_ring.release(arrives);
        value_ring.wait_filled();
        start_result(result, weights, value_ring.buffer(), item.key_tiles == 1);
        wait_for_products<0>();
        hold(result);
        value_ring.release(arrives);
        write_rows(result, state, out, out_stride, item, length, row);
    }
}
