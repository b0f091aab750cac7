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
constexpr int64_t kLineBytes = 64;
// What one worker fetches ahead at most: a part of a second-level cache.
constexpr int64_t kLinesAhead = 256 * 1024 / kLineBytes;

// How much of phase `phase` a word counts; what other phases left there is below all, or above.
int64_t count_of(uint64_t word, uint64_t phase, int64_t above) {
    const uint64_t owner = word >> kCountBits;
    if (owner == phase) return static_cast<int64_t>(word & kCountMask);
    return owner < phase ? 0 : above;
}

uint64_t word_of(uint64_t phase, int64_t count) {
    return phase << kCountBits | static_cast<uint64_t>(count);
}

// Spins, then sleeps, until `done()`. Whoever makes it true calls `wake` afterwards. `idle()` is
// what to do meanwhile: false where there is nothing.
template <class Done, class Idle>
void wait_until(Done done, Idle idle, std::atomic<uint32_t>& wakes,
                std::atomic<int32_t>& sleepers) {
    for (int spin = 0; spin < kSpins;) {
        if (done()) return;
        if (idle()) continue;
        _mm_pause();
        ++spin;
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

// `length` indices, or with 0 a part of what is left of a share: of one's own, then of others'.
bool Worker::claim(int64_t total, int64_t length, int64_t& begin, int64_t& end) {
    total_ = total;
    hand_in();
    for (int turn = 0; turn < pool_.size_; ++turn) {
        const int share = (index_ + turn) % pool_.size_;
        const int64_t first = total * share / pool_.size_;
        const int64_t size = total * (share + 1) / pool_.size_ - first;
        auto& taken = pool_.taken(phase_, share);
        uint64_t seen = taken.load(std::memory_order_acquire);
        while (true) {
            begin = count_of(seen, phase_, size);
            if (begin >= size) break;
            const int64_t part = length > 0 ? length : (size - begin) / 2;
            end = begin + (part > 1 ? part : 1);
            if (taken.compare_exchange_weak(seen, word_of(phase_, end), std::memory_order_acq_rel,
                                            std::memory_order_acquire)) {
                in_hand_ = end - begin;
                begin += first;
                end += first;
                return true;
            }
        }
    }
    return false;
}

void Worker::hand_in() {
    if (in_hand_ == 0) return;
    auto& done = pool_.done(phase_);
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
    return count_of(pool_.done(phase_).load(std::memory_order_seq_cst), phase_, total_) >= total_;
}

void Worker::expect(const Upcoming& next) {
    if (next.data == upcoming_.data) return;
    upcoming_ = next;
    tile_ = next.tiles * index_ / pool_.size_;
    fetched_ = 0;
    allowance_ = kLinesAhead;
}

// Asks for one more line of what is upcoming, of this worker's own share.
bool Worker::fetch_line() {
    if (allowance_ == 0 || tile_ == upcoming_.tiles) return false;
    const int64_t lines = upcoming_.tile_bytes / kLineBytes;
    const int64_t half = fetched_ < lines ? 0 : upcoming_.tiles * upcoming_.tile_bytes;
    __builtin_prefetch(
        upcoming_.data + half + tile_ * upcoming_.tile_bytes + fetched_ % lines * kLineBytes, 0, 2);
    --allowance_;
    if (++fetched_ == (upcoming_.paired ? 2 * lines : lines)) {
        fetched_ = 0;
        ++tile_;
    }
    return true;
}

void Worker::next_phase() {
    hand_in();
    // To a late worker `total_` may be anything.
    wait_until([this] { return is_done() || late(); }, [this] { return fetch_line(); },
               pool_.wakes_, pool_.sleepers_);
    ++phase_;
    total_ = 0;
}

ThreadPool::ThreadPool(int threads, const std::vector<int>& pinned)
    : size_(threads), taken_(kPhases * static_cast<uint64_t>(threads)) {
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
        wait_until([&] { return stopping_.load() || job_.load() > seen; }, [] { return false; },
                   wakes_, sleepers_);
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
