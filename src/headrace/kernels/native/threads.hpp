// The thread pool: workers run one job together, meet at barriers, share work by counters.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace headrace {

class ThreadPool;

// What a kernel sees of the pool: which worker it is, barriers, and the next piece of work.
class Worker {
  public:
    Worker(ThreadPool& pool, int index) : pool_(pool), index_(index) {}
    int index() const { return index_; }
    int count() const;
    // Returns when all workers have arrived; what they wrote before is visible after.
    void barrier();
    // The first of `step` indices that nobody took since the counter was reset.
    int64_t take(int64_t step);
    // A run of the `total` indices that nobody took, [begin, end): long at first, so that memory is
    // read in order, and short at last, so that all workers end together. False: none is left.
    bool take_run(int64_t total, int64_t& begin, int64_t& end);
    // Barrier after which the counter starts from 0 again.
    void next_phase();

  private:
    ThreadPool& pool_;
    int index_;
    uint32_t phase_ = 0;
};

// Workers spin for some microseconds where they wait, then sleep in the kernel: the pool is quick
// within a step and costs nothing between steps.
class ThreadPool {
  public:
    // `pinned` holds a CPU for each worker (the calling thread is worker 0 and is not pinned), or
    // nothing.
    explicit ThreadPool(int threads, const std::vector<int>& pinned);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int size() const { return size_; }
    // Runs `job` on every worker, the calling thread among them; calls of several threads queue.
    void run(const std::function<void(Worker&)>& job);

  private:
    friend class Worker;
    void serve(int index);
    void arrive();

    static constexpr int kCounters = 4;
    const int size_;
    std::mutex running_;
    std::vector<std::thread> threads_;
    const std::function<void(Worker&)>* job_ = nullptr;
    std::atomic<bool> stopping_{false};
    alignas(64) std::atomic<uint32_t> epoch_{0};
    alignas(64) std::atomic<uint32_t> generation_{0};
    std::atomic<int32_t> sleepers_{0};
    alignas(64) std::atomic<int32_t> arrived_{0};
    struct alignas(64) Counter {
        std::atomic<int64_t> value{0};
    };
    Counter counters_[kCounters];
};

}  // namespace headrace
