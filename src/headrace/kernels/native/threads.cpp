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
// Of a phase's word: 2^24 indices, and 2^40 phases, which take months.
constexpr int kCountBits = 24;
constexpr uint64_t kCountMask = (uint64_t{1} << kCountBits) - 1;

// How much of phase `phase` a word counts; what other phases left there is below all, or above.
int64_t count_of(uint64_t word, uint64_t phase, int64_t above) {
    const uint64_t owner = word >> kCountBits;
    if (owner == phase) return static_cast<int64_t>(word & kCountMask);
    return owner < phase ? 0 : above;
}

uint64_t word_of(uint64_t phase, int64_t count) {
    return phase << kCountBits | static_cast<uint64_t>(count);
}

// Spins, then sleeps, until `done()`. Whoever makes it true calls `wake` afterwards.
template <class Done>
void wait_until(Done done, std::atomic<uint32_t>& wakes, std::atomic<int32_t>& sleepers) {
    for (int spin = 0; spin < kSpins; ++spin) {
        if (done()) return;
        _mm_pause();
    }
    sleepers.fetch_add(1, std::memory_order_seq_cst);
    while (true) {
        const uint32_t seen = wakes.load(std::memory_order_seq_cst);
        if (done()) break;
        syscall(SYS_futex, reinterpret_cast<uint32_t*>(&wakes), FUTEX_WAIT_PRIVATE, seen, nullptr,
                nullptr, 0);
    }
    sleepers.fetch_sub(1, std::memory_order_seq_cst);
}

}  // namespace

int Worker::count() const { return pool_.size_; }

bool Worker::late() const { return pool_.job_.load(std::memory_order_acquire) != job_; }

bool Worker::take(int64_t total, int64_t& index) {
    int64_t end = 0;
    return claim(total, 1, index, end);
}

bool Worker::take_run(int64_t total, int64_t& begin, int64_t& end) {
    return claim(total, 0, begin, end);
}

// `share` indices, or with 0 a part of what is left.
bool Worker::claim(int64_t total, int64_t share, int64_t& begin, int64_t& end) {
    total_ = total;
    hand_in();
    auto& taken = pool_.phases_[phase_ % ThreadPool::kPhases].taken;
    uint64_t seen = taken.load(std::memory_order_acquire);
    do {
        begin = count_of(seen, phase_, total);
        if (begin >= total) return false;
        const int64_t part = share > 0 ? share : (total - begin) / (2 * pool_.size_);
        end = begin + (part > 1 ? part : 1);
    } while (!taken.compare_exchange_weak(seen, word_of(phase_, end), std::memory_order_acq_rel,
                                          std::memory_order_acquire));
    in_hand_ = end - begin;
    return true;
}

void Worker::hand_in() {
    if (in_hand_ == 0) return;
    auto& done = pool_.phases_[phase_ % ThreadPool::kPhases].done;
    uint64_t seen = done.load(std::memory_order_relaxed);
    int64_t count = 0;
    do {
        count = count_of(seen, phase_, 0) + in_hand_;
    } while (!done.compare_exchange_weak(seen, word_of(phase_, count), std::memory_order_seq_cst,
                                         std::memory_order_relaxed));
    in_hand_ = 0;
    if (count == total_) pool_.wake();
}

bool Worker::is_done() const {
    const auto& done = pool_.phases_[phase_ % ThreadPool::kPhases].done;
    return count_of(done.load(std::memory_order_seq_cst), phase_, total_) >= total_;
}

void Worker::next_phase() {
    hand_in();
    // To a late worker `total_` may be anything.
    wait_until([this] { return is_done() || late(); }, pool_.wakes_, pool_.sleepers_);
    ++phase_;
    total_ = 0;
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
    stopping_.store(true, std::memory_order_seq_cst);
    wake();
    for (auto& thread : threads_) thread.join();
}

void ThreadPool::run(std::shared_ptr<const Job> job) {
    const std::lock_guard<std::mutex> lock(running_);
    const uint64_t number = job_.load(std::memory_order_relaxed) + 1;
    {
        const std::lock_guard<std::mutex> guard(entrance_);
        current_ = job;
        job_.store(number, std::memory_order_seq_cst);
    }
    wake();
    Worker worker(*this, 0, number, first_phase_);
    (*job)(worker);
    worker.next_phase();
    const std::lock_guard<std::mutex> guard(entrance_);
    current_.reset();
    first_phase_ = worker.phase_;
    job_.store(number + 1, std::memory_order_seq_cst);
}

void ThreadPool::serve(int index) {
    uint64_t seen = 0;
    while (true) {
        wait_until([&] { return stopping_.load() || job_.load() > seen; }, wakes_, sleepers_);
        if (stopping_.load()) return;
        std::shared_ptr<const Job> job;
        uint64_t first_phase = 0;
        {
            const std::lock_guard<std::mutex> guard(entrance_);
            seen = job_.load(std::memory_order_relaxed);
            job = current_;
            first_phase = first_phase_;
        }
        if (job == nullptr) continue;
        Worker worker(*this, index, seen, first_phase);
        (*job)(worker);
        worker.next_phase();
    }
}

// Whoever sleeps has counted itself before it looked again at what it waits for.
void ThreadPool::wake() {
    if (sleepers_.load(std::memory_order_seq_cst) == 0) return;
    wakes_.fetch_add(1, std::memory_order_seq_cst);
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&wakes_), FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr,
            nullptr, 0);
}

}  // namespace headrace
