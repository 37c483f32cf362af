// Blocks in random order, the threads of a block as fibers in random order.
//
// A fiber runs until it waits (at a barrier, or for the other lanes of its warp), ends
// or fails. A launch that fails abandons its fibers where they stand: kernels own
// nothing. Fibers go on from block to block, and they change by _longjmp, which asks
// nothing of the system; its checked form would not allow another stack.
#undef _FORTIFY_SOURCE
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "cuda_standin.h"
#include "runtime.h"

Index3 threadIdx, blockIdx, blockDim, gridDim;

namespace standin {
namespace {

constexpr int kLanes = 32;
constexpr int kMostThreads = 1024;
constexpr std::size_t kStackBytes = 256 * 1024;

enum class State { ready, at_barrier, in_warp, ended };

struct Fiber {
    State state = State::ready;
    // What it waits for in its warp, and what the warp's lanes brought.
    Collective kind = Collective::syncwarp;
    unsigned mask = 0;
    std::uint64_t value = 0;
    std::array<std::uint64_t, kLanes> received{};
    // For each lane of the warp, the last of its times that is known to be over.
    std::array<std::uint32_t, kLanes> seen{};
    std::uint32_t time = 1;
};

struct Launch {
    const char* kernel;
    void (*call)(const void*);
    const void* context;
    std::vector<std::unique_ptr<Fiber>> fibers;
    std::vector<int> ready;
    jmp_buf scheduler;
    std::uint32_t block = 0;
    std::uint32_t epoch = 1;
    int current = -1;
    std::string complaint;
};

Launch* active = nullptr;
std::uint32_t launches = 0;
std::mt19937_64 generator(0);
std::int64_t most_blocks_allowed = std::int64_t{1} << 30;

char* stack_of(int thread) {
    static char* const stacks = [] {
        void* start = mmap(nullptr, kStackBytes * kMostThreads, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (start == MAP_FAILED) throw std::bad_alloc();
        return static_cast<char*>(start);
    }();
    return stacks + kStackBytes * thread;
}

// Where the threads' stacks stand, and whether there is anything on them.
struct Place {
    jmp_buf where;
    bool started = false;
};
Place places[kMostThreads];

Fiber& fiber() {
    return *active->fibers[active->current];
}

void to_scheduler() {
    if (_setjmp(places[active->current].where) == 0) _longjmp(active->scheduler, 1);
}

void wake(int thread) {
    active->fibers[thread]->state = State::ready;
    active->ready.push_back(thread);
}

[[noreturn]] void fiber_main() {
    while (true) {
        active->call(active->context);
        fiber().state = State::ended;
        to_scheduler();
    }
}

// Lets the current thread run until it comes back by to_scheduler or fail.
__attribute__((noinline)) void resume() {
    if (_setjmp(active->scheduler) != 0) return;
    Place& place = places[active->current];
    if (place.started) _longjmp(place.where, 1);
    place.started = true;
    ucontext_t fresh;
    getcontext(&fresh);
    fresh.uc_stack.ss_sp = stack_of(active->current);
    fresh.uc_stack.ss_size = kStackBytes;
    fresh.uc_link = nullptr;
    makecontext(&fresh, reinterpret_cast<void (*)()>(fiber_main), 0);
    setcontext(&fresh);
}

// All threads of the block wait: let them go on.
void pass_barrier_if_complete() {
    const auto& fibers = active->fibers;
    if (!std::all_of(fibers.begin(), fibers.end(),
                     [](const auto& f) { return f->state == State::at_barrier; })) {
        return;
    }
    ++active->epoch;
    for (std::size_t i = 0; i < fibers.size(); ++i) wake(static_cast<int>(i));
}

// All lanes of the current fiber's mask wait: hand out the values and let them go on.
void pass_warp_if_complete() {
    const int first = active->current / kLanes * kLanes;
    const Fiber& caller = fiber();
    std::array<std::uint64_t, kLanes> values{};
    std::array<std::uint32_t, kLanes> seen{};
    for (int lane = 0; lane < kLanes; ++lane) {
        if (!(caller.mask >> lane & 1)) continue;
        const Fiber& other = *active->fibers[first + lane];
        if (other.state != State::in_warp) return;
        if (other.mask != caller.mask || other.kind != caller.kind) {
            fail("warp divergence: the lanes of one warp wait for different things");
        }
        values[lane] = other.value;
        for (int i = 0; i < kLanes; ++i) seen[i] = std::max(seen[i], other.seen[i]);
        seen[lane] = std::max(seen[lane], other.time);
    }
    for (int lane = 0; lane < kLanes; ++lane) {
        if (!(caller.mask >> lane & 1)) continue;
        Fiber& other = *active->fibers[first + lane];
        other.received = values;
        if (caller.kind == Collective::syncwarp) {
            other.seen = seen;
            ++other.time;
        }
        wake(first + lane);
    }
}

std::string why_stuck() {
    int counts[4] = {};
    for (const auto& f : active->fibers) ++counts[static_cast<int>(f->state)];
    return "divergence: in block " + std::to_string(active->block) + " " +
           std::to_string(counts[static_cast<int>(State::at_barrier)]) +
           " threads wait at a barrier and " +
           std::to_string(counts[static_cast<int>(State::in_warp)]) +
           " for lanes of their warp, while " +
           std::to_string(counts[static_cast<int>(State::ended)]) + " have ended";
}

void run_block(int threads) {
    reset_shared();
    active->epoch = 1;
    active->ready.resize(threads);
    std::iota(active->ready.begin(), active->ready.end(), 0);
    for (int i = 0; i < threads; ++i) *active->fibers[i] = Fiber{};
    while (!active->ready.empty()) {
        const std::size_t pick = generator() % active->ready.size();
        std::swap(active->ready[pick], active->ready.back());
        active->current = active->ready.back();
        active->ready.pop_back();
        threadIdx = {static_cast<unsigned>(active->current), 0, 0};
        resume();
        active->current = -1;
        if (!active->complaint.empty()) return;
    }
    for (const auto& f : active->fibers) {
        if (f->state == State::ended) continue;
        active->complaint = why_stuck();
        return;
    }
}

}  // namespace

void run(const char* kernel, std::int64_t blocks, int threads,
         void (*call)(const void*), const void* context) {
    if (threads < 1 || threads > kMostThreads || threads % kLanes != 0) {
        throw DeviceError(std::string(kernel) + ": cannot launch blocks of " +
                          std::to_string(threads) + " threads");
    }
    Launch launch{kernel, call, context, {}, {}, {}, 0, 1, -1, {}};
    for (int i = 0; i < threads; ++i)
        launch.fibers.push_back(std::make_unique<Fiber>());
    std::vector<std::uint32_t> order(blocks);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), generator);
    blockDim = {static_cast<unsigned>(threads), 1, 1};
    gridDim = {static_cast<unsigned>(blocks), 1, 1};
    ++launches;
    active = &launch;
    for (std::uint32_t block : order) {
        launch.block = block;
        blockIdx = {block, 0, 0};
        run_block(threads);
        if (!launch.complaint.empty()) break;
    }
    active = nullptr;
    reset_shared();
    if (!launch.complaint.empty()) {
        for (Place& place : places) place.started = false;
        throw DeviceError(std::string(kernel) + ": " + launch.complaint);
    }
}

void set_seed(std::uint64_t seed) {
    generator.seed(seed);
}

void set_most_blocks(std::int64_t blocks) {
    most_blocks_allowed = blocks;
}

std::int64_t get_most_blocks() {
    return most_blocks_allowed;
}

std::uint32_t launch_count() {
    return launches;
}

bool in_kernel() {
    return active != nullptr && active->current >= 0;
}

Moment now() {
    return {launches, active->block, static_cast<std::uint32_t>(active->current),
            active->epoch, fiber().time};
}

bool ordered(const Moment& earlier) {
    const Moment here = now();
    if (earlier.launch != here.launch) return true;  // launches follow one another
    if (earlier.block != here.block) return false;
    if (earlier.thread == here.thread || earlier.epoch < here.epoch) return true;
    if (earlier.thread / kLanes != here.thread / kLanes) return false;
    return earlier.time <= fiber().seen[earlier.thread % kLanes];
}

bool on_current_stack(std::uintptr_t address, std::size_t bytes) {
    const auto start = reinterpret_cast<std::uintptr_t>(stack_of(active->current));
    return address >= start && address + bytes <= start + kStackBytes;
}

void fail(const std::string& complaint) {
    active->complaint = complaint;
    _longjmp(active->scheduler, 1);
}

std::string describe(const Moment& moment) {
    return "thread " + std::to_string(moment.thread) + " of block " +
           std::to_string(moment.block);
}

void barrier() {
    fiber().state = State::at_barrier;
    pass_barrier_if_complete();
    to_scheduler();
}

const std::uint64_t* exchange(Collective kind, unsigned mask, std::uint64_t value) {
    Fiber& caller = fiber();
    if (!(mask >> (active->current % kLanes) & 1)) {
        fail("warp divergence: " + describe(now()) + " is not in the mask it names");
    }
    caller.state = State::in_warp;
    caller.kind = kind;
    caller.mask = mask;
    caller.value = value;
    pass_warp_if_complete();
    to_scheduler();
    return caller.received.data();
}

}  // namespace standin
