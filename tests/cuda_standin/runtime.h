// The device that is not there: what the stand-in's parts know of one another.
//
// One launch runs at a time, one block after another in random order; a thread of the
// block is a fiber, and the next fiber to run is drawn at random wherever one stops.
// Kernels are compiled with the thread sanitizer's instrumentation, whose calls
// (__tsan_read4, ...) end in check_access here instead of in its run-time library: so
// every access of a kernel to memory is seen with its address and size.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace standin {

// What a real device or its checking tools would have complained about.
struct DeviceError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

enum class Access : std::uint8_t { read, write, atomic };

enum class Mode {
    input,      // holds values, must not be written
    output,     // holds nothing, must be written in full before anyone reads it
    inout,      // holds values, may be written
    workspace,  // holds nothing, may be written in part
};

// ---- memory.cpp: buffers and what happened to each of their elements

// A new buffer of `bytes`, `offset` bytes past a 256-byte boundary, far from others.
// Its memory is poisoned. `granule` is the size of an element.
std::uintptr_t allocate(const std::string& name, std::size_t bytes, std::size_t offset,
                        std::size_t granule, Mode mode);
// Forgets all buffers.
void reset_memory();
// The first element of the buffer that no kernel has written, or -1.
std::int64_t first_unwritten(std::uintptr_t address);
// If set, memory that is no buffer may be used unchecked.
std::uint32_t launch_count();  // since the module was loaded
void allow_any_memory(bool allowed);

// The block's array called `name`, made by the first thread that asks.
void* shared_array(const char* name, std::size_t bytes, std::size_t granule);
void reset_shared();

// Called for each access of a kernel.
void check_access(std::uintptr_t address, std::size_t bytes, Access kind, bool aligned);

// ---- scheduler.cpp: fibers, barriers, warps

// Runs call(context) in every thread of every block. Throws DeviceError.
void run(const char* kernel, std::int64_t blocks, int threads,
         void (*call)(const void*), const void* context);
void set_seed(std::uint64_t seed);
void set_most_blocks(std::int64_t blocks);
std::int64_t get_most_blocks();

// Where the current thread stands; two accesses are ordered or they are not.
struct Moment {
    std::uint32_t launch = 0;  // 0: never
    std::uint32_t block = 0;
    std::uint32_t thread = 0;
    std::uint32_t epoch = 0;  // barriers that the block has passed
    std::uint32_t time = 0;   // __syncwarps that the thread has passed
};
bool in_kernel();
Moment now();
// Whether `earlier` happened before anything that the current thread does now.
bool ordered(const Moment& earlier);
bool on_current_stack(std::uintptr_t address, std::size_t bytes);
// Ends the launch with this complaint; does not return.
[[noreturn]] void fail(const std::string& complaint);
std::string describe(const Moment& moment);

// What kernels call, by way of cuda_standin.h.
void barrier();
enum class Collective { syncwarp, shuffle, ballot, match };
// Waits for the lanes of `mask`, then returns the value that each of them brought.
const std::uint64_t* exchange(Collective kind, unsigned mask, std::uint64_t value);

}  // namespace standin
