// Hopper's instructions (sm_90a) as functions: barriers in shared memory, the copy engine, descriptors
// of the matrix unit's operands, clusters, dependent launch; and what its layouts ask for.
//
// In front of it: kBfloat16. PTX ISA: "mbarrier", "cp.async.bulk.tensor", "Asynchronous warpgroup
// level matrix instructions", "griddepcontrol".

typedef unsigned int u32;
typedef unsigned long long u64;

struct alignas(64) TensorMap {
    u64 opaque[16];
};

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

// What was initialized is seen by the copy engine and by the other programs of the cluster.
__device__ __forceinline__ void publish_barriers() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
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

__device__ __forceinline__ void barrier_arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
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

__device__ __forceinline__ void load_tile(u32 to, const TensorMap* map, u32 barrier, int a, int b, int c, int d) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
        " [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(to), "l"(map), "r"(barrier), "r"(a), "r"(b), "r"(c), "r"(d)
        : "memory");
}

__device__ __forceinline__ void load_tile_for_both(u32 to, const TensorMap* map, u32 barrier, int column, int row) {
    const unsigned short both = 3;
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
        " [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(to), "l"(map), "r"(barrier), "r"(column), "r"(row), "h"(both)
        : "memory");
}

// An operand whose rows are 128 bytes along K, swizzled over as many; eight rows are 1024 bytes.
__device__ __forceinline__ u64 matrix_descriptor(u32 address) {
    return static_cast<u64>((address & 0x3FFFF) >> 4) | (1ull << 16) | (64ull << 32) | (1ull << 62);
}

// An operand whose rows are 128 bytes across K, in panels of 64 elements that lie panel_bytes apart.
__device__ __forceinline__ u64 transposed_descriptor(u32 address, u32 panel_bytes) {
    return static_cast<u64>((address & 0x3FFFF) >> 4) | (static_cast<u64>(panel_bytes >> 4) << 16) | (64ull << 32) | (1ull << 62);
}

__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Until at most so many of the groups committed last are still being computed.
template <int kGroups>
__device__ __forceinline__ void wait_for_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroups) : "memory");
}

// Keep the compiler from moving registers that the matrix unit reads or writes meanwhile.
template <int kCount>
__device__ __forceinline__ void hold(float (&values)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(values[i])::"memory");
}

template <int kCount>
__device__ __forceinline__ void hold(u32 (&values)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(values[i])::"memory");
}

// One producer warpgroup gives what two consumers take of a multiprocessor's registers.
__device__ __forceinline__ void give_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 40;"); }

__device__ __forceinline__ void take_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 232;"); }

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
