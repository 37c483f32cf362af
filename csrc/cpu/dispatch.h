// One kernel source, three instruction sets, one choice at run time.
//
// Convention for a kernel named `foo`
//   csrc/cpu/foo.h    includes this file; in namespace fastjac, a plain parameter
//                     struct (no member functions) and one declaration:
//                         FASTJAC_DECLARE_KERNEL(
//                             template <typename T> void foo(const Foo<T>& p);)
//   csrc/cpu/foo.cpp  includes foo.h; everything in namespace fastjac::FASTJAC_ISA
//                     (helpers in an anonymous namespace inside it), ending in one
//                     explicit instantiation for each type. The build finds the file
//                     by itself and compiles it once for each instruction set, with
//                     FASTJAC_ISA = baseline | avx2 | avx512 and that set's flags; use
//                     __AVX512F__ and __AVX2__ for code that differs.
//   csrc/bindings.cpp calls FASTJAC_CALL(foo<T>, params): the chosen set's version.
//
// Rules that keep AVX-512 code off a machine without it
//   * Nothing with external linkage outside fastjac::FASTJAC_ISA: that includes
//     templates and inline functions in headers shared by kernels (write them inside
//     `namespace fastjac::FASTJAC_ISA` too).
//   * Inline functions of the standard library (std::vector, std::sort, ...) are
//     emitted by every object that uses them and the linker keeps the first one it
//     meets. The build therefore links plain objects first, then baseline, avx2,
//     avx512, so that a function that two sets share is the lesser one's.
//   * No object with a constructor at namespace scope: it would run at import, before
//     anything is chosen. (tests/test_build.py checks this and the order above.)
//   * Memory belongs to the caller: a kernel gets its workspace in the parameters.
//
// Threads: OpenMP, `#pragma omp parallel for schedule(static)` unless there is a
// reason. torch's own thread pool is used, so torch.set_num_threads is obeyed. Results
// must not depend on the number of threads: cut the work into pieces whose size depends
// on the shapes alone, and add partial results in a fixed order.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#    define FASTJAC_X86 1
#else
#    define FASTJAC_X86 0
#endif

#if FASTJAC_X86
#    define FASTJAC_DECLARE_KERNEL(...) \
        namespace baseline {            \
        __VA_ARGS__                     \
        }                               \
        namespace avx2 {                \
        __VA_ARGS__                     \
        }                               \
        namespace avx512 {              \
        __VA_ARGS__                     \
        }
#    define FASTJAC_CALL(kernel, ...)                      \
        (::fastjac::isa() == ::fastjac::Isa::avx512        \
             ? ::fastjac::avx512::kernel(__VA_ARGS__)      \
             : (::fastjac::isa() == ::fastjac::Isa::avx2   \
                    ? ::fastjac::avx2::kernel(__VA_ARGS__) \
                    : ::fastjac::baseline::kernel(__VA_ARGS__)))
#else
#    define FASTJAC_DECLARE_KERNEL(...) \
        namespace baseline {            \
        __VA_ARGS__                     \
        }
#    define FASTJAC_CALL(kernel, ...) ::fastjac::baseline::kernel(__VA_ARGS__)
#endif

namespace fastjac {

enum class Isa { baseline, avx2, avx512 };

// The instruction set in use: the best that processor and operating system support,
// or the one that the environment variable FASTJAC_ISA names. Decided at the first
// call. Throws std::runtime_error if FASTJAC_ISA is unknown or not supported here.
Isa isa();

// True if processor and operating system can run `which`.
bool isa_supported(Isa which);

// "baseline", "avx2" or "avx512".
const char* isa_name(Isa which);

// How many threads a kernel runs on, counted in a parallel region.
int thread_count();

}  // namespace fastjac
