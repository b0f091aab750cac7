// Products of many tokens on Hopper (sm_90a): out[T, N] = x[T, K] @ weight[N, K]^T, out += it, or
// SwiGLU's first half, silu(x @ gate^T) * (x @ up^T), in one launch.
//
// Two programs form a cluster that serves 256 tokens, 128 each. A producer thread asks the copy
// engine for tiles; a tile of weights is fetched once for both programs, half by each. Two
// warpgroups of each program multiply 64 tokens by kRows weight rows from shared memory, and walk
// tile after tile until none is left. Of a gated tile one half are gate rows, the other the same
// rows of the up projection, so that both sums of an output lie in one thread.
//
// hopper.py puts in front: kMode, kRows, kStages, kBfloat16, and multiply(), one wgmma instruction.
// PTX ISA: "Asynchronous warpgroup level matrix instructions", "cp.async.bulk.tensor", "mbarrier".

struct alignas(64) TensorMap {
    u64 opaque[16];
};

constexpr int kAdd = 1, kGated = 2;  // 0: store
constexpr int kTokens = 128, kClusterTokens = 2 * kTokens;
constexpr int kDepth = 64;
constexpr int kOutputs = kMode == kGated ? kRows / 2 : kRows;
constexpr int kXBytes = kTokens * kDepth * 2, kHalfBytes = kRows / 2 * kDepth * 2;
constexpr int kStageBytes = kXBytes + 2 * kHalfBytes;
// Sums of a wide tile take more registers than a thread's even share of them.
constexpr bool kWide = kRows > 128;
// Clusters at work together read the x of so many tiles of tokens; it stays in L2 meanwhile.
constexpr int kTogether = 8;

__device__ __forceinline__ u32 shared_address(const void* pointer) {
    return static_cast<u32>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ u32 cluster_rank() {
    u32 rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

__device__ __forceinline__ void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

__device__ __forceinline__ void start_dependents() {
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

__device__ __forceinline__ void wait_for_inputs() {
    asm volatile("griddepcontrol.wait;" ::: "memory");
}

__device__ __forceinline__ void barrier_init(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void barrier_expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ void barrier_wait(u32 barrier, u32 parity) {
    asm volatile(
        "{\n.reg .pred done;\n"
        "again:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n}" ::"r"(barrier), "r"(parity)
        : "memory");
}

// Without a scope of its own: .cluster would make every arrival a fence of the whole device.
__device__ __forceinline__ void barrier_arrive_at(u32 barrier, u32 rank) {
    asm volatile(
        "{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(barrier), "r"(rank)
        : "memory");
}

__device__ __forceinline__ void load_tile(u32 to, const TensorMap* map, u32 barrier, int column, int row) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
        " [%0], [%1, {%3, %4}], [%2];" ::"r"(to), "l"(map), "r"(barrier), "r"(column), "r"(row)
        : "memory");
}

__device__ __forceinline__ void load_tile_for_both(u32 to, const TensorMap* map, u32 barrier, int column, int row) {
    const unsigned short both = 3;
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
        " [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(to), "l"(map), "r"(barrier), "r"(column), "r"(row), "h"(both)
        : "memory");
}

// Of a tile whose rows are 128 bytes along K, swizzled over as many; eight rows are 1024 bytes.
__device__ __forceinline__ u64 matrix_descriptor(u32 address) {
    return static_cast<u64>((address & 0x3FFFF) >> 4) | (1ull << 16) | (64ull << 32) | (1ull << 62);
}

// Keeps the compiler from moving sums while the matrix unit writes them.
__device__ __forceinline__ void hold(float (&sums)[kRows / 2]) {
#pragma unroll
    for (int i = 0; i < kRows / 2; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}

__device__ __forceinline__ u32 pack(float low, float high) {
    u32 both;
    if (kBfloat16) {
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    } else {
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    }
    return both;
}

__device__ __forceinline__ float2 unpack(u32 both) {
    float2 values;
    if (kBfloat16) {
        values.x = __uint_as_float(both << 16);
        values.y = __uint_as_float(both & 0xFFFF0000u);
    } else {
        asm("{.reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h;}"
            : "=f"(values.x), "=f"(values.y)
            : "r"(both));
    }
    return values;
}

// Of four neighbouring lanes that hold four words each, lane q gets everyone's word q. Its own inverse.
__device__ __forceinline__ void transpose_quad(u32 (&words)[4], int q) {
#pragma unroll
    for (int step = 1; step < 4; step *= 2) {
        const bool upper = q & step;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (i & step) continue;
            const u32 sent = upper ? words[i] : words[i + step];
            const u32 got = __shfl_xor_sync(0xFFFFFFFFu, sent, step);
            if (upper) words[i] = got;
            else words[i + step] = got;
        }
    }
}

__device__ __forceinline__ float silu(float gate) { return __fdividef(gate, 1.0f + __expf(-gate)); }

struct Tile {
    int token, row;
};

__device__ __forceinline__ Tile tile_at(int index, int token_tiles, int row_tiles) {
    const int run = index / (kTogether * row_tiles), first = run * kTogether;
    const int wide = min(kTogether, token_tiles - first), within = index - run * kTogether * row_tiles;
    return {first + within % wide, within / wide};
}

// Writes a warpgroup's 64 x kOutputs tile. A thread holds pairs of neighbouring outputs of two
// tokens, eight apart; four lanes trade them for runs of eight, so that 16 bytes are stored at once.
__device__ __forceinline__ void write_tile(
    const float (&sums)[kRows / 2], unsigned short* out, long long out_stride, int token, int tokens, int first, int width) {
    constexpr int kEights = kOutputs / 8, kFours = (kEights + 3) / 4;
    const int q = threadIdx.x % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        unsigned short* row = out + (token + 8 * half) * out_stride;
        bool stored[kFours];
        uint4 before[kFours];
#pragma unroll
        for (int i = 0; i < kFours; ++i) {
            stored[i] = token + 8 * half < tokens && 4 * i + q < kEights && first + 32 * i + 8 * q < width;
            if (kMode == kAdd) {
                before[i] = make_uint4(0, 0, 0, 0);
                if (stored[i]) before[i] = *reinterpret_cast<const uint4*>(row + first + 32 * i + 8 * q);
            }
        }
#pragma unroll
        for (int i = 0; i < kFours; ++i) {
            u32 words[4] = {0, 0, 0, 0};
            if (kMode == kAdd) {
                words[0] = before[i].x, words[1] = before[i].y, words[2] = before[i].z, words[3] = before[i].w;
                transpose_quad(words, q);
            }
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                if (4 * i + j >= kEights) continue;
                const int at = 4 * (4 * i + j) + 2 * half, up = at + kRows / 4;
                if (kMode == kGated) {
                    words[j] = pack(silu(sums[at]) * sums[up], silu(sums[at + 1]) * sums[up + 1]);
                } else if (kMode == kAdd) {
                    const float2 old = unpack(words[j]);
                    words[j] = pack(old.x + sums[at], old.y + sums[at + 1]);
                } else {
                    words[j] = pack(sums[at], sums[at + 1]);
                }
            }
            transpose_quad(words, q);
            if (stored[i]) {
                *reinterpret_cast<uint4*>(row + first + 32 * i + 8 * q) =
                    make_uint4(words[0], words[1], words[2], words[3]);
            }
        }
    }
}

// x: tiles of 128 tokens; weight: tiles of kRows / 2 rows; both of kDepth columns. width: outputs a token.
extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1) hopper_product(
    const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap weight, unsigned short* out,
    long long out_stride, int tokens, int width, int columns) {
    extern __shared__ unsigned char memory[];
    __shared__ __align__(8) u64 barriers[2 * kStages];
    const u32 tiles = (shared_address(memory) + 1023) & ~1023u;
    const u32 full = shared_address(barriers), empty = full + 8 * kStages;
    const u32 rank = cluster_rank();
    start_dependents();
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < kStages; ++stage) {
            barrier_init(full + 8 * stage, 1);
            barrier_init(empty + 8 * stage, 4);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    cluster_sync();
    const int token_tiles = (tokens + kClusterTokens - 1) / kClusterTokens;
    const int row_tiles = (width + kOutputs - 1) / kOutputs;
    const int steps = (columns + kDepth - 1) / kDepth;
    const int first = blockIdx.x / 2, clusters = gridDim.x / 2, last = token_tiles * row_tiles;
    const int warpgroup = threadIdx.x / 128;
    int stage = 0;
    u32 phase = 0;
    if (warpgroup == 0) {
        if (kWide) asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x == 0) {
            // Weights do not depend on the kernel before: the first of them are fetched while it ends.
            const int ahead = min(steps, kStages);
            for (int index = first; index < last; index += clusters) {
                const Tile tile = tile_at(index, token_tiles, row_tiles);
                const int token = tile.token * kClusterTokens + rank * kTokens;
                const int row = tile.row * kOutputs + rank * (kMode == kGated ? width : kRows / 2);
                const u32 half = tiles + kXBytes + rank * kHalfBytes;
                if (index == first) {
                    for (int step = 0; step < ahead; ++step) {
                        barrier_expect(full + 8 * step, kStageBytes);
                        load_tile_for_both(half + step * kStageBytes, &weight, full + 8 * step, step * kDepth, row);
                    }
                    wait_for_inputs();
                }
                for (int step = 0; step < steps; ++step) {
                    if (index != first || step >= ahead) {
                        barrier_wait(empty + 8 * stage, phase ^ 1);
                        barrier_expect(full + 8 * stage, kStageBytes);
                        load_tile_for_both(half + stage * kStageBytes, &weight, full + 8 * stage, step * kDepth, row);
                    }
                    load_tile(tiles + stage * kStageBytes, &x, full + 8 * stage, step * kDepth, token);
                    if (++stage == kStages) stage = 0, phase ^= 1;
                }
            }
        }
    } else {
        if (kWide) asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        const int group = warpgroup - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
        const int thread = threadIdx.x % 128;
        float sums[kRows / 2];
        wait_for_inputs();
        // One warpgroup stays ahead of the other, so that one multiplies while the other writes.
        if (kSkew && group == 1) asm volatile("bar.sync 1, 256;" ::: "memory");
        for (int index = first; index < last; index += clusters) {
            const Tile tile = tile_at(index, token_tiles, row_tiles);
            int previous = 0;
            for (int step = 0; step < steps; ++step) {
                barrier_wait(full + 8 * stage, phase);
                const u32 from = tiles + stage * kStageBytes;
                const u64 a = matrix_descriptor(from + group * (kXBytes / 2));
                const u64 b = matrix_descriptor(from + kXBytes);
                hold(sums);
                asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
                for (int k = 0; k < kDepth / 16; ++k) multiply(sums, a + 2 * k, b + 2 * k, step > 0 || k > 0);
                asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
                hold(sums);
                // One step's products stay in flight; what the step before read may be overwritten.
                if (step > 0) {
                    asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
                    if (thread < 2) barrier_arrive_at(empty + 8 * previous, thread);
                }
                if (kSkew && group == 0 && index == first && step == min(steps, kStages) - 1) asm volatile("bar.arrive 1, 256;" ::: "memory");
                previous = stage;
                if (++stage == kStages) stage = 0, phase ^= 1;
            }
            asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
            hold(sums);
            if (thread < 2) barrier_arrive_at(empty + 8 * previous, thread);
            const int token = tile.token * kClusterTokens + rank * kTokens + group * 64 + warp * 16 + lane / 4;
            write_tile(sums, out, out_stride, token, tokens, tile.row * kOutputs, width);
        }
    }
    // A program must not end while the other may still signal its barriers.
    cluster_sync();
}
