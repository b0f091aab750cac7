// The face between the program and the kernels: their arguments, and a table for each instruction
// set. Plain data only; every buffer stays in place for the life of a program.
#pragma once

#include <cstdint>

#include "threads.hpp"

namespace headrace {

// What one step brings: T tokens of S sequences, R of them sampled.
struct Step {
    int32_t tokens;
    int32_t sequences;
    int32_t sampled;
};

// Which number of a step counts the rows of a buffer.
enum class Rows { tokens, sampled };

static inline int32_t row_count(Rows rows, const Step& step) {
    return rows == Rows::tokens ? step.tokens : step.sampled;
}

enum class Type { float32, bfloat16, int8 };

// How a matrix is laid out: tiles of 32 rows (outputs), interleaved along K so that a vector holds
// one 32-bit unit of each of its rows. Rows past N are zero.
//   float32   unit = 1 element:                        [N/32][K][32]
//   bfloat16  unit = 2 neighbours of K:                [N/32][K/2][32][2]
//   q8_0      blocks of 32 of K, unit = 4 bytes:       [N/32][K/32]{scale[32] f16, [8][32][4]}
//             bytes hold the quant + 128
//   q4_0      as GGUF's, quant 0..15 with offset 8:    [N/32][K/32]{scale[32] f16, [4][32][4]}
//             unit p holds quants 4p.. in the low and 16 + 4p.. in the high nibbles
//   q4_1      with a minimum:             [N/32][K/32]{scale[32], minimum[32] f16, [4][32][4]}
enum class Format { float32, bfloat16, q8_0, q4_0, q4_1 };

constexpr int64_t kMaxHeadDim = 256;
constexpr int kTileRows = 32;
constexpr int kBlock = 32;
constexpr int kMostPackedRows = 12;  // that a linear computes together, of any instruction set
constexpr int kFewestPieceChunks = 3;  // of 32 columns, that one task of a linear packs
constexpr int kMostChunkRows = 96;   // that meet a tile together; a multiple of all packed rows

// Bytes of one tile of 32 rows with K columns (K even for bfloat16, a multiple of 32 for blocks).
static inline int64_t tile_bytes(Format format, int64_t k) {
    switch (format) {
        case Format::float32: return k * kTileRows * 4;
        case Format::bfloat16: return k * kTileRows * 2;
        case Format::q8_0: return k / kBlock * (64 + 1024);
        case Format::q4_0: return k / kBlock * (64 + 512);
        case Format::q4_1: return k / kBlock * (128 + 512);
    }
    return 0;
}

static constexpr bool is_dense(Format format) {
    return format == Format::float32 || format == Format::bfloat16;
}

// Chunks of 32 columns, of which K may fill the last in part.
static constexpr int64_t chunk_count(int64_t k) { return (k + kBlock - 1) / kBlock; }

// Bytes of 32 columns of one row of activations once packed for a matrix of this format.
static constexpr int64_t packed_chunk_bytes(Format format) {
    switch (format) {
        case Format::float32: return kBlock * 4;
        case Format::bfloat16: return kBlock * 2;
        default: return kBlock + 8;
    }
}

// Bytes that a row takes at most of the outliers of `chunks` chunks of 32 columns in `pieces` pieces:
// an item a piece, and for the one outlier that a chunk may have an item, perhaps another for its
// column and a third for its chunk (linear/outliers.hpp).
constexpr int64_t kOutlierItemBytes = 8;
static constexpr int64_t outlier_row_bytes(int64_t chunks, int64_t pieces) {
    return (pieces + 3 * chunks) * kOutlierItemBytes;
}

// Bytes of scratch for one row: its chunks, and in a block format room for outliers.
static inline int64_t packed_row_bytes(Format format, int64_t k) {
    const int64_t chunks = chunk_count(k);
    const int64_t pieces = (chunks + kFewestPieceChunks - 1) / kFewestPieceChunks;
    return chunks * packed_chunk_bytes(format) +
           (is_dense(format) ? 0 : outlier_row_bytes(chunks, pieces));
}

struct Matrix {
    const uint8_t* tiles;
    Format format;
    int64_t n;
    int64_t k;
};

struct Embed {
    const int32_t* token_ids;
    Matrix table;
    float* out;
};

// out[r] = source[rows[r]] for each sampled token r.
struct GatherRows {
    const void* source;
    int64_t row_bytes;
    const int32_t* rows;
    void* out;
};

struct Norm {
    Rows rows;
    const void* delta;  // null: nothing is added
    Type delta_type;
    float* residual;
    const float* weight;
    float eps;
    const int32_t* gathered;  // of which token each row is; null: the residual is updated
    void* out;
    Type out_type;
    int64_t hidden;
};

// How a linear is computed for some number of rows. No plan changes a bit of the result.
struct LinearPlan {
    int32_t most_rows;     // that a pass over a tile serves; a kernel exists for so many
    int32_t chunk_rows;    // that meet a tile before the next tile: they share it in the cache
    bool split_by_rows;    // workers share rows, each with all tiles, rather than tiles
    bool packs_privately;  // every worker packs the rows for itself, where they are few: no waiting
};

// Plans are kept for up to 1, 2, 4, ..., 128 rows, and for more.
constexpr int kPlans = 9;
static inline int plan_index(int64_t rows) {
    int index = 0;
    while (index < kPlans - 1 && int64_t{1} << index < rows) ++index;
    return index;
}

struct LinearCall {
    Rows rows;
    const void* x;
    Type x_type;
    Matrix weight;
    const float* bias;  // null: none
    bool gated;  // The first and second half of the product, g and u, give silu(g) * u.
    void* out;
    Type out_type;
    const LinearPlan* plans;  // kPlans of them
    uint8_t* scratch;
};

// Blocks of keys [kv_heads][block/16][units of head_dim][16][per unit], then values
// [kv_heads][units of block][head_dim][per unit], where a 32-bit unit holds 2 bfloat16 or 1 float32:
// a vector holds one unit of 16 positions (keys) or of 16 dimensions (values). Blocks of int8 have
// scales in them: attention/int8_pages.hpp.
struct Cache {
    void* keys;
    void* values;
    Type type;
    int64_t blocks;
    int64_t block_size;
    int64_t heads_apart;  // heads of keys and of values in a block
};

// Bytes of the keys, or the values, of one head and block.
static inline int64_t cache_page_bytes(Type type, int64_t block_size, int64_t dim) {
    switch (type) {
        case Type::float32: return block_size * dim * 4;
        case Type::bfloat16: return block_size * dim * 2;
        case Type::int8: return block_size * (dim + 4);
    }
    return 0;
}

struct Heads {
    int64_t query;
    int64_t kv;
    int64_t dim;
};

struct Rotary {
    void* qkv;
    Type type;
    const float* cos_sin;
    int64_t max_position;
    const float* query_norm;  // null: no norms
    const float* key_norm;
    float eps;
    Heads heads;
    Cache cache;
    const int32_t* positions;
    const int32_t* slots;
};

struct Attention {
    const void* qkv;
    Type type;
    float scale;
    int64_t window;  // 0: unlimited
    Heads heads;
    Cache cache;
    const int32_t* query_start;
    const int32_t* context_lengths;
    const int32_t* rows;
    const int32_t* block_tables;
    int64_t max_rows;
    int64_t max_blocks;
    void* out;
    float* partials;  // scratch of kPartialSlots slots; null: no context is shared
};

// A slot of `partials`: sums of up to 12 rows over one segment of their context.
constexpr int64_t kPartialSlots = 256;
constexpr int64_t kPartialHeader = 16;
static inline int64_t partial_slot_floats(int64_t dim) { return 12 * (kPartialHeader + dim); }

struct Activation {
    Rows rows;
    const void* gate_up;
    void* out;
    Type type;
    int64_t width;
};

// Another low-rank update for each token; the arrays are those of low_rank/stack.py.
struct LowRank {
    const void* x;
    Type type;  // of x, down and up
    int64_t k;
    const void* down;
    const void* up;
    const int64_t* pieces;
    const float* scales;
    const int64_t* columns;
    int64_t adapters;
    int64_t projections;
    int64_t most_rows;
    const int32_t* adapter_of_token;  // -1: none
    void* out;
    Type out_type;
    float* narrow;  // scratch [tokens][most_rows]
};

struct Greedy {
    const float* logits;
    int64_t rows;
    int64_t vocab;
    int32_t* token;  // the first of equals
    float* peak;     // its logit, or NaN where any logit is
    float* logprob;  // null: not wanted
};

// Log-probabilities of one token of each row, and of the `top` most likely ones.
struct Logprobs {
    const float* logits;
    int64_t rows;
    int64_t vocab;
    const int32_t* tokens;
    float* logprobs;  // NaN where the row's largest logit is not finite
    int64_t top;
    int32_t* top_tokens;  // [rows][top]; of equals the first comes first
    float* top_logprobs;
    float* scratch;
};

// One token of each of `draws` rows of logits. Neutral values: top_k of at least `vocab`, top_p and
// typical_p of 1. Where the largest logit is not finite a token means nothing.
struct Draw {
    const float* logits;
    int64_t vocab;
    int64_t draws;
    const int32_t* rows;
    const float* temperature;
    const int64_t* top_k;
    const float* top_p;
    const float* typical_p;
    const float* uniform;  // in [0, 1)
    int32_t* tokens;
    float* scratch;
};

// Each worker has arrays of this many elements of four bytes: keys, weights and token ids of a row,
// with a vector more than it has logits, and keys and weights again to search in.
constexpr int64_t kSamplingArrays = 5;
static inline int64_t sampling_stride(int64_t vocab) { return (vocab + 31) / 16 * 16; }
static inline int64_t sampling_scratch_floats(int64_t vocab, int64_t workers) {
    return kSamplingArrays * sampling_stride(vocab) * workers;
}

struct KernelTable {
    const char* name;
    void (*embed)(const Embed&, const Step&, Worker&);
    void (*gather_rows)(const GatherRows&, const Step&, Worker&);
    void (*norm)(const Norm&, const Step&, Worker&);
    void (*linear)(const LinearCall&, const Step&, Worker&);
    LinearPlan (*default_plan)(Format, int64_t rows);
    bool (*has_rows)(Format, int64_t rows);  // whether a plan may have so many a pass
    void (*rotary)(const Rotary&, const Step&, Worker&);
    void (*attention)(const Attention&, const Step&, Worker&);
    void (*fold_attention)(const Attention&, const Step&, Worker&);
    void (*activation)(const Activation&, const Step&, Worker&);
    void (*low_rank)(const LowRank&, const Step&, Worker&);
    void (*greedy)(const Greedy&, Worker&);
    void (*logprobs)(const Logprobs&, Worker&);
    void (*draw)(const Draw&, Worker&);
};

}  // namespace headrace
