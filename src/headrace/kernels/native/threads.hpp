// The thread pool: workers run one job together, phase by phase, and share each phase's work.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace headrace {

class ThreadPool;

// Matrix tiles that a later phase reads, in the order of its work. A paired matrix has as many
// tiles again behind them, and each meets its partner.
struct Upcoming {
    const uint8_t* data = nullptr;
    int64_t tile_bytes = 0;  // a multiple of a cache line
    int64_t tiles = 0;
    bool paired = false;
};

// What a kernel sees of the pool: which worker it is, and the next piece of a phase's work.
//
// The indices of a phase are dealt out in equal shares, so that in every phase a worker finds the
// same rows and tiles in its own cache; whoever has finished its share helps with the others'.
//
// A phase is over when its work is done, not when all workers have come: one that the system keeps
// off its core holds the others up only while it has a piece in hand. When it comes back it finds
// nothing left in the phases that it missed, and in the end that the job is over.
class Worker {
  public:
    int index() const { return index_; }
    int count() const;
    // The next of the phase's `total` indices that nobody took. False: none is left.
    bool take(int64_t total, int64_t& index);
    // A run of them, [begin, end): long at first, so that memory is read in order, and short at
    // last, so that all workers end together. All calls of a phase must name the same `total`.
    // A run may lie before the one taken last.
    bool take_run(int64_t total, int64_t& begin, int64_t& end);
    // Returns when the phase's work is done; what was written in it is visible after.
    void next_phase();
    // What to fetch into the cache while there is nothing else to do.
    void expect(const Upcoming& next);
    // The job was finished without this worker: what it reads may change under its hands.
    bool late() const;

  private:
    friend class ThreadPool;
    Worker(ThreadPool& pool, int index, uint64_t job, uint64_t phase)
        : pool_(pool), index_(index), job_(job), phase_(phase) {}
    bool claim(int64_t total, int64_t share, int64_t& begin, int64_t& end);
    void hand_in();
    bool fetch_line();
    bool is_done() const;

    ThreadPool& pool_;
    const int index_;
    const uint64_t job_;
    uint64_t phase_;
    int64_t total_ = 0;
    int64_t in_hand_ = 0;
    Upcoming upcoming_;
    int64_t tile_ = 0;      // of upcoming_: where fetching is
    int64_t fetched_ = 0;   // of its lines
    int64_t allowance_ = 0; // lines that may still be fetched
};

// Workers spin for some microseconds where they wait, then sleep in the kernel: the pool is quick
// within a step and costs nothing between steps.
class ThreadPool {
  public:
    using Job = std::function<void(Worker&)>;

    // `pinned` holds a CPU for each worker (the calling thread is worker 0 and is not pinned), or
    // nothing.
    explicit ThreadPool(int threads, const std::vector<int>& pinned);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int size() const { return size_; }
    // Runs `job` on every worker, the calling thread among them, and returns when all its work is
    // done; calls of several threads queue. A late worker may hold `job` for a while longer.
    void run(std::shared_ptr<const Job> job);

  private:
    friend class Worker;
    void serve(int index);
    void wake();

    // A phase's number in the upper bits, so that nobody need reset it, and in the lower how many
    // of its indices are done, or taken of one worker's share.
    struct alignas(64) Word {
        std::atomic<uint64_t> value{0};
    };
    static constexpr uint64_t kPhases = 64;
    std::atomic<uint64_t>& done(uint64_t phase) { return done_[phase % kPhases].value; }
    std::atomic<uint64_t>& taken(uint64_t phase, int share) {
        return taken_[phase % kPhases * static_cast<uint64_t>(size_) + static_cast<uint64_t>(share)]
            .value;
    }

    const int size_;
    std::mutex running_;
    std::vector<std::thread> threads_;
    std::mutex entrance_;  // guards the next two
    std::shared_ptr<const Job> current_;
    uint64_t first_phase_ = kPhases;
    std::atomic<bool> stopping_{false};
    // Odd while a job runs.
    alignas(64) std::atomic<uint64_t> job_{0};
    alignas(64) std::atomic<uint32_t> wakes_{0};
    std::atomic<int32_t> sleepers_{0};
    Word done_[kPhases];
    std::vector<Word> taken_;  // [phase][share]
};

}  // namespace headrace
