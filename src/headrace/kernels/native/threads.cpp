#include "threads.hpp"

#include <immintrin.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace headrace {
namespace {

// About 30 microseconds: longer than a worker lags behind within a step, shorter than a step.
constexpr int kSpins = 1000;

void sleep_while_equal(std::atomic<uint32_t>& word, uint32_t value) {
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_PRIVATE, value, nullptr,
            nullptr, 0);
}

void wake_all(std::atomic<uint32_t>& word) {
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr,
            nullptr, 0);
}

void wait_for_change(std::atomic<uint32_t>& word, uint32_t old, std::atomic<int32_t>& sleepers) {
    for (int spin = 0; spin < kSpins; ++spin) {
        if (word.load(std::memory_order_acquire) != old) return;
        _mm_pause();
    }
    sleepers.fetch_add(1, std::memory_order_seq_cst);
    while (word.load(std::memory_order_seq_cst) == old) sleep_while_equal(word, old);
    sleepers.fetch_sub(1, std::memory_order_seq_cst);
}

}  // namespace

int Worker::count() const { return pool_.size_; }

void Worker::barrier() { pool_.arrive(); }

int64_t Worker::take(int64_t step) {
    auto& counter = pool_.counters_[phase_ % ThreadPool::kCounters].value;
    return counter.fetch_add(step, std::memory_order_relaxed);
}

bool Worker::take_run(int64_t total, int64_t& begin, int64_t& end) {
    auto& counter = pool_.counters_[phase_ % ThreadPool::kCounters].value;
    begin = counter.load(std::memory_order_relaxed);
    do {
        if (begin >= total) return false;
        const int64_t share = (total - begin) / (2 * pool_.size_);
        end = begin + (share > 1 ? share : 1);
    } while (!counter.compare_exchange_weak(begin, end, std::memory_order_relaxed));
    return true;
}

void Worker::next_phase() {
    // The counter of two phases ahead is untouched by anyone until the barrier after this one.
    if (index_ == 0) {
        pool_.counters_[(phase_ + 2) % ThreadPool::kCounters].value.store(
            0, std::memory_order_relaxed);
    }
    ++phase_;
    pool_.arrive();
}

ThreadPool::ThreadPool(int threads, const std::vector<int>& pinned) : size_(threads) {
    for (int index = 1; index < size_; ++index) {
        threads_.emplace_back([this, index] { serve(index); });
        if (!pinned.empty()) {
            cpu_set_t cpus;
            CPU_ZERO(&cpus);
            CPU_SET(pinned[static_cast<size_t>(index)], &cpus);
            pthread_setaffinity_np(threads_.back().native_handle(), sizeof(cpus), &cpus);
        }
    }
}

ThreadPool::~ThreadPool() {
    stopping_.store(true);
    epoch_.fetch_add(1, std::memory_order_seq_cst);
    wake_all(epoch_);
    for (auto& thread : threads_) thread.join();
}

void ThreadPool::run(const std::function<void(Worker&)>& job) {
    const std::lock_guard<std::mutex> lock(running_);
    job_ = &job;
    for (auto& counter : counters_) counter.value.store(0, std::memory_order_relaxed);
    epoch_.fetch_add(1, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) wake_all(epoch_);
    Worker worker(*this, 0);
    job(worker);
    arrive();
}

void ThreadPool::serve(int index) {
    uint32_t seen = 0;
    while (true) {
        wait_for_change(epoch_, seen, sleepers_);
        ++seen;
        if (stopping_.load()) return;
        Worker worker(*this, index);
        (*job_)(worker);
        arrive();
    }
}

void ThreadPool::arrive() {
    if (size_ == 1) return;
    const uint32_t generation = generation_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
        arrived_.store(0, std::memory_order_relaxed);
        generation_.fetch_add(1, std::memory_order_seq_cst);
        if (sleepers_.load(std::memory_order_seq_cst) > 0) wake_all(generation_);
    } else {
        wait_for_change(generation_, generation, sleepers_);
    }
}

}  // namespace headrace
