// Products of many tokens on Hopper (sm_90a): out[T, N] = x[T, K] @ weight[N, K]^T, out += it, or
// SwiGLU's first half, silu(x @ gate^T) * (x @ up^T), in one launch.
//
// Two programs form a cluster that serves 256 tokens, 128 each. A producer thread asks the copy
// engine for tiles; a tile of weights is fetched once for both programs, half by each. Two
// warpgroups of each program multiply 64 tokens by kRows weight rows from shared memory, and walk
// tile after tile until none is left. Of a gated tile one half are gate rows, the other the same
// rows of the up projection, so that both sums of an output lie in one thread.
//
// hopper.py puts in front: ../hopper.cuh, KERNEL (the name), kMode, kRows, kStages, and multiply(), one
// wgmma instruction.

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
extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1) KERNEL(
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
        publish_barriers();
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
        if (kWide) give_registers();
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
        if (kWide) take_registers();
        const int group = warpgroup - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
        const int thread = threadIdx.x % 128;
        float sums[kRows / 2];
        wait_for_inputs();
        for (int index = first; index < last; index += clusters) {
            const Tile tile = tile_at(index, token_tiles, row_tiles);
            int previous = 0;
            for (int step = 0; step < steps; ++step) {
                barrier_wait(full + 8 * stage, phase);
                const u32 from = tiles + stage * kStageBytes;
                const u64 a = matrix_descriptor(from + group * (kXBytes / 2));
                const u64 b = matrix_descriptor(from + kXBytes);
                hold(sums);
                begin_products();
#pragma unroll
                for (int k = 0; k < kDepth / 16; ++k) multiply(sums, a + 2 * k, b + 2 * k, step > 0 || k > 0);
                commit_products();
                hold(sums);
                // One step's products stay in flight; what the step before read may be overwritten.
                if (step > 0) {
                    wait_for_products<1>();
                    if (thread < 2) barrier_arrive_at(empty + 8 * previous, thread);
                }
                previous = stage;
                if (++stage == kStages) stage = 0, phase ^= 1;
            }
            wait_for_products<0>();
            hold(sums);
            if (thread < 2) barrier_arrive_at(empty + 8 * previous, thread);
            const int token = tile.token * kClusterTokens + rank * kTokens + group * 64 + warp * 16 + lane / 4;
            write_tile(sums, out, out_stride, token, tokens, tile.row * kOutputs, width);
        }
    }
    // A program must not end while the other may still signal its barriers.
    cluster_sync();
}
