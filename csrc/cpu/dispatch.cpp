// Which instruction set to run; see dispatch.h. Compiled once, without extra flags.
#include "dispatch.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace fastjac {
namespace {

constexpr Isa kIsas[] = {Isa::baseline, Isa::avx2, Isa::avx512};

Isa best() {
    for (Isa which : {Isa::avx512, Isa::avx2}) {
        if (isa_supported(which)) return which;
    }
    return Isa::baseline;
}

Isa choose() {
    const char* wish = std::getenv("FASTJAC_ISA");
    if (wish == nullptr || *wish == '\0') return best();
    for (Isa which : kIsas) {
        if (std::string(wish) != isa_name(which)) continue;
        if (isa_supported(which)) return which;
        throw std::runtime_error(
            std::string("FASTJAC_ISA=") + wish +
            ": this processor or operating system does not support it; the best it "
            "supports is " +
            isa_name(best()) + "; unset FASTJAC_ISA to use that");
    }
    throw std::runtime_error(std::string("FASTJAC_ISA=") + wish +
                             ": unknown; expected baseline, avx2 or avx512, or leave "
                             "it unset for the best that is supported");
}

}  // namespace

Isa isa() {
    static const Isa chosen = choose();
    return chosen;
}

bool isa_supported(Isa which) {
#if FASTJAC_X86
    // These builtins also ask the operating system (XGETBV).
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    switch (which) {
        case Isa::baseline:
            return true;
        case Isa::avx2:
            return avx2;
        case Isa::avx512:
            return avx2 && __builtin_cpu_supports("avx512f") &&
                   __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512vl") &&
                   __builtin_cpu_supports("avx512dq");
    }
    return false;
#else
    return which == Isa::baseline;
#endif
}

const char* isa_name(Isa which) {
    switch (which) {
        case Isa::baseline:
            return "baseline";
        case Isa::avx2:
            return "avx2";
        case Isa::avx512:
            return "avx512";
    }
    return "unknown";
}

int thread_count() {
    int count = 0;
#pragma omp parallel reduction(+ : count)
    ++count;
    return count;
}

}  // namespace fastjac
