// Buffers with wide gaps between them, and for each element who touched it and when.
//
// Found here: accesses outside all buffers, misaligned ones, writes to inputs, reads of
// what nobody wrote, and races: two accesses to one element by different threads, not
// both atomic and not both reads, with no barrier between them that orders them. Races
// are found whatever order the threads happened to run in.
#include <link.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "runtime.h"

namespace standin {
namespace {

constexpr std::size_t kArenaBytes = std::size_t{1} << 32;
constexpr std::size_t kGap = std::size_t{1} << 16;
constexpr std::size_t kMostShared = 48 * 1024;
constexpr unsigned char kPoison = 0xff;  // a NaN as a float, -1 as an integer

struct Touch {
    Moment when;
    Access kind = Access::read;
};

// The touches of one element that are not ordered one after the other.
struct Element {
    Touch last;
    std::unique_ptr<std::vector<Touch>> others;
    bool written = false;
};

struct Buffer {
    std::string name;
    std::uintptr_t start;
    std::size_t bytes;
    std::size_t granule;
    Mode mode;
    bool shared;
    std::vector<Element> elements;
};

std::vector<std::unique_ptr<Buffer>> buffers;  // by address; shared ones are the last
std::size_t used = 0;                          // bytes of the arena
bool any_memory = false;

std::uintptr_t arena() {
    static void* const start = mmap(nullptr, kArenaBytes, PROT_READ | PROT_WRITE,
                                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED) throw std::bad_alloc();
    return reinterpret_cast<std::uintptr_t>(start);
}

Buffer& add_buffer(const std::string& name, std::size_t bytes, std::size_t offset,
                   std::size_t granule, Mode mode, bool shared) {
    std::size_t start = (used + kGap + 255) / 256 * 256 + offset;
    if (start + bytes + kGap > kArenaBytes) throw std::bad_alloc();
    used = start + bytes;
    auto buffer = std::make_unique<Buffer>();
    *buffer = {name, arena() + start, bytes, granule, mode, shared, {}};
    buffer->elements.resize((bytes + granule - 1) / granule);
    std::memset(reinterpret_cast<void*>(buffer->start), kPoison, bytes);
    buffers.push_back(std::move(buffer));
    return *buffers.back();
}

// The last buffer that starts at or before the address, or null.
Buffer* buffer_before(std::uintptr_t address) {
    auto after =
        std::upper_bound(buffers.begin(), buffers.end(), address,
                         [](std::uintptr_t a, const std::unique_ptr<Buffer>& b) {
                             return a < b->start;
                         });
    return after == buffers.begin() ? nullptr : std::prev(after)->get();
}

// Constants and tables of the kernels are in the module's own image.
bool in_module(std::uintptr_t address) {
    struct Range {
        std::uintptr_t start = 0, end = 0;
    };
    static const Range range = [] {
        Range found;
        dl_iterate_phdr(
            [](dl_phdr_info* info, std::size_t, void* data) {
                const auto here = reinterpret_cast<std::uintptr_t>(&buffers);
                Range image{~std::uintptr_t{0}, 0};
                for (int i = 0; i < info->dlpi_phnum; ++i) {
                    if (info->dlpi_phdr[i].p_type != PT_LOAD) continue;
                    const auto start = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
                    image.start = std::min<std::uintptr_t>(image.start, start);
                    image.end = std::max<std::uintptr_t>(
                        image.end, start + info->dlpi_phdr[i].p_memsz);
                }
                if (here < image.start || here >= image.end) return 0;
                *static_cast<Range*>(data) = image;
                return 1;
            },
            &found);
        return found;
    }();
    return address >= range.start && address < range.end;
}

const char* verb(Access kind) {
    return kind == Access::read    ? "reads"
           : kind == Access::write ? "writes"
                                   : "updates (atomically)";
}

std::string place(const Buffer& buffer, std::size_t element) {
    return std::string(buffer.shared ? "shared `" : "`") + buffer.name + "`[" +
           std::to_string(element) + "]";
}

[[noreturn]] void out_of_bounds(std::uintptr_t address, std::size_t bytes,
                                Access kind) {
    std::string text = std::string("out of bounds: ") + describe(now()) + " " +
                       verb(kind) + " " + std::to_string(bytes) + " bytes ";
    Buffer* before = buffer_before(address);
    auto next = before == nullptr
                    ? buffers.begin()
                    : std::find_if(buffers.begin(), buffers.end(),
                                   [&](const auto& b) { return b->start > address; });
    if (before != nullptr && address < before->start + before->bytes + kGap / 2) {
        text += "at byte " + std::to_string(address - before->start) + " of `" +
                before->name + "`, which has " + std::to_string(before->bytes);
    } else if (next != buffers.end() && address + kGap / 2 >= (*next)->start) {
        text += std::to_string((*next)->start - address) + " bytes before `" +
                (*next)->name + "`";
    } else {
        text += "at an address far from every buffer";
    }
    fail(text);
}

bool conflict(Access a, Access b) {
    if (a == Access::read && b == Access::read) return false;
    return !(a == Access::atomic && b == Access::atomic);
}

// Once `later` is recorded, `earlier` (ordered before it) needs no record if whatever
// races with `earlier` also races with `later`.
bool covered(Access earlier, Access later) {
    return later == Access::write || earlier == later;
}

void touch(const Buffer& buffer, std::size_t index, Element& element, Access kind) {
    const auto check = [&](const Touch& other) {
        if (other.when.launch == 0 || !conflict(other.kind, kind)) return;
        if (ordered(other.when)) return;
        fail("race on " + place(buffer, index) + ": " + describe(now()) + " " +
             verb(kind) + ", " + describe(other.when) + " " + verb(other.kind) +
             ", nothing orders them");
    };
    const auto needless = [&](const Touch& other) {
        return other.when.launch == 0 ||
               (ordered(other.when) && covered(other.kind, kind));
    };
    check(element.last);
    if (element.others) {
        for (const Touch& other : *element.others) check(other);
        auto& others = *element.others;
        others.erase(std::remove_if(others.begin(), others.end(), needless),
                     others.end());
        if (others.empty()) element.others.reset();
    }
    if (!needless(element.last)) {
        if (!element.others) element.others = std::make_unique<std::vector<Touch>>();
        element.others->push_back(element.last);
    }
    element.last = {now(), kind};
}

}  // namespace

std::uintptr_t allocate(const std::string& name, std::size_t bytes, std::size_t offset,
                        std::size_t granule, Mode mode) {
    reset_shared();
    Buffer& buffer = add_buffer(name, bytes, offset, granule, mode, false);
    const bool full = mode == Mode::input || mode == Mode::inout;
    for (Element& element : buffer.elements) element.written = full;
    return buffer.start;
}

void reset_memory() {
    buffers.clear();
    // Also forgets the values, so that nothing survives by accident.
    if (used > 0) madvise(reinterpret_cast<void*>(arena()), used, MADV_DONTNEED);
    used = 0;
}

std::int64_t first_unwritten(std::uintptr_t address) {
    const Buffer* buffer = buffer_before(address);
    if (buffer == nullptr || buffer->start != address) {
        throw std::invalid_argument("no buffer starts at this address");
    }
    for (std::size_t i = 0; i < buffer->elements.size(); ++i) {
        if (!buffer->elements[i].written) return static_cast<std::int64_t>(i);
    }
    return -1;
}

void allow_any_memory(bool allowed) {
    any_memory = allowed;
}

void* shared_array(const char* name, std::size_t bytes, std::size_t granule) {
    std::size_t total = bytes;
    for (auto it = buffers.rbegin(); it != buffers.rend() && (*it)->shared; ++it) {
        if ((*it)->name == name) return reinterpret_cast<void*>((*it)->start);
        total += (*it)->bytes;
    }
    if (total > kMostShared) {
        fail("the block's shared arrays take " + std::to_string(total) +
             " bytes, a block has " + std::to_string(kMostShared));
    }
    const Buffer& made = add_buffer(name, bytes, 0, granule, Mode::workspace, true);
    return reinterpret_cast<void*>(made.start);
}

void reset_shared() {
    while (!buffers.empty() && buffers.back()->shared) {
        used = buffers.back()->start - arena();
        buffers.pop_back();
    }
}

void check_access(std::uintptr_t address, std::size_t bytes, Access kind,
                  bool aligned) {
    if (!in_kernel()) return;
    Buffer* buffer = buffer_before(address);
    if (buffer == nullptr || address + bytes > buffer->start + buffer->bytes) {
        const bool inside_arena = address >= arena() && address < arena() + kArenaBytes;
        if (!inside_arena &&
            (any_memory || on_current_stack(address, bytes) || in_module(address))) {
            return;
        }
        out_of_bounds(address, bytes, kind);
    }
    if (aligned && address % bytes != 0) {
        fail("misaligned: " + describe(now()) + " " + verb(kind) + " " +
             std::to_string(bytes) + " bytes at byte " +
             std::to_string(address - buffer->start) + " of `" + buffer->name +
             "`, which is not a multiple of that from address 0");
    }
    if (buffer->mode == Mode::input) {
        if (kind == Access::read) return;
        fail("`" + buffer->name + "` is an input, but " + describe(now()) + " " +
             verb(kind) + " it");
    }
    const std::size_t first = (address - buffer->start) / buffer->granule;
    const std::size_t last = (address + bytes - 1 - buffer->start) / buffer->granule;
    for (std::size_t i = first; i <= last; ++i) {
        Element& element = buffer->elements[i];
        if (kind != Access::write && !element.written) {
            fail("uninitialised: " + describe(now()) + " " + verb(kind) + " " +
                 place(*buffer, i) + ", which nobody has written");
        }
        touch(*buffer, i, element, kind);
        if (kind != Access::read) element.written = true;
    }
}

}  // namespace standin

// What the compiler's instrumentation calls. Defined here, no library is linked.
#define STANDIN_HOOKS(bytes)                                              \
    void __tsan_read##bytes(void* p) {                                    \
        standin::check_access(reinterpret_cast<std::uintptr_t>(p), bytes, \
                              standin::Access::read, true);               \
    }                                                                     \
    void __tsan_write##bytes(void* p) {                                   \
        standin::check_access(reinterpret_cast<std::uintptr_t>(p), bytes, \
                              standin::Access::write, true);              \
    }                                                                     \
    void __tsan_unaligned_read##bytes(void* p) {                          \
        standin::check_access(reinterpret_cast<std::uintptr_t>(p), bytes, \
                              standin::Access::read, false);              \
    }                                                                     \
    void __tsan_unaligned_write##bytes(void* p) {                         \
        standin::check_access(reinterpret_cast<std::uintptr_t>(p), bytes, \
                              standin::Access::write, false);             \
    }

extern "C" {
STANDIN_HOOKS(1)
STANDIN_HOOKS(2)
STANDIN_HOOKS(4)
STANDIN_HOOKS(8)
STANDIN_HOOKS(16)
void __tsan_read_range(void* p, unsigned long bytes) {
    standin::check_access(reinterpret_cast<std::uintptr_t>(p), bytes,
                          standin::Access::read, false);
}
void __tsan_write_range(void* p, unsigned long bytes) {
    standin::check_access(reinterpret_cast<std::uintptr_t>(p), bytes,
                          standin::Access::write, false);
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit(void*) {}
void __tsan_vptr_update(void*, void*) {}
void __tsan_vptr_read(void*) {}
}
