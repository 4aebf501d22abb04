// The fibers under the host shim. Compiled without sanitizer instrumentation, which it talks to by hand.
#include "fibers.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <vector>

#if defined(__x86_64__) && !defined(LOSATOK_SHIM_UCONTEXT)
#define LOSATOK_SHIM_ASSEMBLY
#else
#include <ucontext.h>
#endif
#if defined(LOSATOK_SHIM_TSAN)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#elif defined(LOSATOK_SHIM_ASAN)
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(LOSATOK_SHIM_ASSEMBLY)
// Saves what a call preserves, changes stacks, restores: (where to keep the old stack pointer, the new one).
extern "C" void losatok_shim_switch(void** from, void* to);
asm(R"(
.text
.globl losatok_shim_switch
.type losatok_shim_switch, @function
losatok_shim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size losatok_shim_switch, .-losatok_shim_switch
)");
#endif

namespace host_shim {

Index thread_index, block_index, block_size, grid_size;
unsigned char* shared_memory = nullptr;

namespace {

constexpr unsigned kLanes = 32;
constexpr unsigned kNobody = ~0u;
#if defined(LOSATOK_SHIM_TSAN) || defined(LOSATOK_SHIM_ASAN)
constexpr size_t kStack = 256 * 1024;
#else
constexpr size_t kStack = 128 * 1024;
#endif

struct Place {
  const char* file = nullptr;
  unsigned line = 0;
  bool operator==(const Place& other) const { return line == other.line && !std::strcmp(file, other.file); }
  std::string text() const {
    const char* name = std::strrchr(file, '/');
    return std::string(name ? name + 1 : file) + ":" + std::to_string(line);
  }
};

struct Copy {
  void* to;
  const void* from;
  int bytes, whole;
};

enum class State { kReady, kAtBlockBarrier, kAtWarpBarrier, kDone };

struct Fiber {
  State state = State::kReady;
  Place place;
  unsigned barriers = 0, collectives = 0, exchanges = 0;  // how many it has passed
  std::deque<std::vector<Copy>> copies;                   // groups in flight, then the open one
  char* stack = nullptr;
#if defined(LOSATOK_SHIM_ASSEMBLY)
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
  void* sanitizer = nullptr;
};

using Memory = std::unique_ptr<char, decltype(&std::free)>;

struct Warp {
  unsigned arrived = 0;
  char sync[2];
  void* brought[kLanes];
  alignas(16) unsigned char values[2][kLanes][16];
};

// What a fiber runs on: a stack, and what ThreadSanitizer knows it by. Used again from block to block.
struct Slot {
  Memory stack{nullptr, &std::free};
  void* sanitizer = nullptr;
};

// The state of one block. ThreadSanitizer's happens-before edges hang on addresses in here: a block's alone, and two in
// turn for barriers, so that a thread that is late to leave one does not learn what others did on their way to the
// next.
struct Block {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  Memory shared{nullptr, &std::free};
  char sync[2];
};

#if defined(LOSATOK_SHIM_TSAN)
// Fibers of one slot are one thread to ThreadSanitizer, which knows at most 8128 and is slow with many. So races
// between blocks are seen, except between threads of the same number in blocks as far apart as this holds.
constexpr size_t kSlots = 512;
std::vector<std::unique_ptr<Block>> past;  // kept to the launch's end: blocks must not seem to share memory
#endif
std::vector<Slot> slots;
char sync_launch, sync_end;

// Blocks run in turn on one CPU thread, so there is one of each of these.
std::unique_ptr<Block> running;
std::vector<unsigned> by_rank, rank_of;
std::array<uint64_t, 1024 / 64> ready;  // bit r: the thread of rank r can run
unsigned current = kNobody, at_barrier = 0, done = 0;
Fiber host;
const std::function<void()>* body = nullptr;
std::string error;
Order order = Order::kForward;
uint64_t random_state = 1;
#if defined(LOSATOK_SHIM_ASAN)
const void* host_bottom = nullptr;
size_t host_size = 0;
#endif

uint64_t next_random() {  // xorshift64*, Vigna 2016
  random_state ^= random_state >> 12;
  random_state ^= random_state << 25;
  random_state ^= random_state >> 27;
  return random_state * 0x2545F4914F6CDD1Dull;
}

void release(void* address) {
#if defined(LOSATOK_SHIM_TSAN)
  __tsan_release(address);
#else
  (void)address;
#endif
}

void acquire(void* address) {
#if defined(LOSATOK_SHIM_TSAN)
  __tsan_acquire(address);
#else
  (void)address;
#endif
}

void set_ready(unsigned t) {
  running->fibers[t].state = State::kReady;
  ready[rank_of[t] / 64] |= uint64_t{1} << (rank_of[t] % 64);
}

void set_waiting(unsigned t, State state) {
  running->fibers[t].state = state;
  ready[rank_of[t] / 64] &= ~(uint64_t{1} << (rank_of[t] % 64));
}

// Only when every live thread is ready or done, so that the set of ready ranks can be made anew.
void draw_ranks() {
  const unsigned n = static_cast<unsigned>(running->fibers.size());
  for (unsigned i = 0; i < n; ++i) by_rank[i] = order == Order::kReverse ? n - 1 - i : i;
  if (order == Order::kPriority) {
    for (unsigned i = n; i > 1; --i) std::swap(by_rank[i - 1], by_rank[next_random() % i]);
  }
  for (unsigned i = 0; i < n; ++i) rank_of[by_rank[i]] = i;
  ready = {};
  for (unsigned t = 0; t < n; ++t) {
    if (running->fibers[t].state == State::kReady) set_ready(t);
  }
}

unsigned pick() {
  for (size_t word = 0; word < ready.size(); ++word) {
    if (ready[word]) return by_rank[word * 64 + std::countr_zero(ready[word])];
  }
  return kNobody;
}

void change(Fiber& from, Fiber& to, [[maybe_unused]] bool last) {
#if defined(LOSATOK_SHIM_TSAN)
  __tsan_switch_to_fiber(to.sanitizer, 1);  // 1: a change of turns orders nothing
#elif defined(LOSATOK_SHIM_ASAN)
  void* fake = nullptr;
  const bool to_host = &to == &host;
  __sanitizer_start_switch_fiber(last ? nullptr : &fake, to_host ? host_bottom : to.stack,
                                 to_host ? host_size : kStack);
#endif
#if defined(LOSATOK_SHIM_ASSEMBLY)
  losatok_shim_switch(&from.stack_pointer, to.stack_pointer);
#else
  swapcontext(&from.context, &to.context);
#endif
#if defined(LOSATOK_SHIM_ASAN)
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

void give_turn(unsigned next) {
  Fiber& from = current == kNobody ? host : running->fibers[current];
  const bool last = current != kNobody && running->fibers[current].state == State::kDone;
  Fiber& to = next == kNobody ? host : running->fibers[next];
  if (&from == &to) return;
  current = next;
  if (next != kNobody)
    thread_index = {next % block_size.x, next / block_size.x % block_size.y, next / block_size.x / block_size.y};
  change(from, to, last);
}

std::string where(unsigned t) {
  const Fiber& fiber = running->fibers[t];
  const std::string name = "thread " + std::to_string(t);
  if (fiber.state == State::kDone) return name + " has returned";
  return name + (fiber.state == State::kAtBlockBarrier ? " waits at the barrier " : " waits at the warp collective ") +
         fiber.place.text();
}

// Nobody can run though not everybody is done: says who waits where.
void report_deadlock() {
  unsigned waiting = kNobody, other = kNobody;
  for (unsigned t = 0; t < running->fibers.size(); ++t) {
    if (running->fibers[t].state != State::kDone && waiting == kNobody) waiting = t;
  }
  for (unsigned t = 0; t < running->fibers.size(); ++t) {
    const bool differs = running->fibers[t].state != running->fibers[waiting].state ||
                         !(running->fibers[t].place == running->fibers[waiting].place);
    if (differs && (other == kNobody || running->fibers[t].state == State::kDone)) other = t;
  }
  error = "deadlock in block " + std::to_string(block_index.x) + ": " + where(waiting) +
          (other == kNobody ? "" : ", but " + where(other));
}

void next_turn() {
  const unsigned next = pick();
  if (next == kNobody && done != running->fibers.size()) report_deadlock();
  give_turn(next);
}

// Through memcpy and memset, which sanitizers watch even where code is not instrumented.
void copy_now(const std::vector<Copy>& group) {
  for (const Copy& copy : group) {
    std::memcpy(copy.to, copy.from, copy.bytes);
    std::memset(static_cast<char*>(copy.to) + copy.bytes, 0, copy.whole - copy.bytes);
  }
}

void thread_main() {
#if defined(LOSATOK_SHIM_ASAN)
  const void* bottom = nullptr;
  size_t size = 0;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
  if (host_bottom == nullptr) {  // the first fiber of all is entered from the host's stack
    host_bottom = bottom;
    host_size = size;
  }
#endif
  acquire(&sync_launch);
  (*body)();
  Fiber& self = running->fibers[current];
  for (const auto& group : self.copies) {
    if (!group.empty()) fail("thread " + std::to_string(current) + " returned with asynchronous copies in flight");
  }
  release(&sync_end);
  set_waiting(current, State::kDone);
  ++done;
  next_turn();
  std::abort();  // nobody comes back here
}

Memory allocate(size_t alignment, size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, alignment, bytes)) std::abort();
  return Memory(static_cast<char*>(memory), &std::free);
}

// Thread t of the running block on a slot.
void start(unsigned t, Slot& slot) {
  Fiber& fiber = running->fibers[t];
  if (slot.stack == nullptr) {
    slot.stack = allocate(64, kStack);
#if defined(LOSATOK_SHIM_TSAN)
    slot.sanitizer = __tsan_create_fiber(0);
#endif
  }
  fiber.stack = slot.stack.get();
  fiber.sanitizer = slot.sanitizer;
#if defined(LOSATOK_SHIM_ASSEMBLY)
  // Six registers and a return address; at the entry of a function the stack pointer is 8 off a multiple of 16.
  void** top = reinterpret_cast<void**>(fiber.stack + kStack - 64);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&thread_main);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  fiber.stack_pointer = top;
#else
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = kStack;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, &thread_main, 0);
#endif
}

}  // namespace

void set_order(Order new_order, uint64_t seed) {
  order = new_order;
  random_state = seed * 0x9E3779B97F4A7C15ull + 1;
}

const char* last_error() { return error.c_str(); }

LaunchListener on_launch = nullptr;

unsigned lane() { return current % kLanes; }

void fail(const std::string& message) {
  error = message + " (block " + std::to_string(block_index.x) + ", thread " + std::to_string(current) + ")";
  give_turn(kNobody);
  std::abort();
}

bool run(const std::function<void()>& kernel, Index grid, Index block, size_t shared_bytes) {
  const unsigned threads = block.x * block.y * block.z;
  error.clear();
  if (threads == 0 || threads % kLanes || threads > 1024) {
    error = "a block of " + std::to_string(threads) + " threads: take 32 to 1024, a multiple of 32";
    return false;
  }
  body = &kernel;
  grid_size = grid;
  block_size = block;
#if defined(LOSATOK_SHIM_TSAN)
  host.sanitizer = __tsan_get_current_fiber();
#endif
  for (uint64_t b = 0; b < uint64_t{grid.x} * grid.y * grid.z && error.empty(); ++b) {
    block_index = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                   static_cast<unsigned>(b / grid.x / grid.y)};
    running = std::make_unique<Block>();
    running->fibers = std::vector<Fiber>(threads);
    running->warps.resize(threads / kLanes);
    // Exactly as much as was asked for, so that AddressSanitizer knows its end; NaN in every floating-point type.
    running->shared = allocate(128, shared_bytes);
    std::memset(running->shared.get(), 0xff, shared_bytes);
    shared_memory = reinterpret_cast<unsigned char*>(running->shared.get());
    by_rank.resize(threads);
    rank_of.resize(threads);
    at_barrier = done = 0;
    size_t first_slot = 0;
#if defined(LOSATOK_SHIM_TSAN)
    first_slot = b % std::max<size_t>(1, kSlots / threads) * threads;
#endif
    if (slots.size() < first_slot + threads) slots.resize(first_slot + threads);
    for (unsigned t = 0; t < threads; ++t) start(t, slots[first_slot + t]);
    draw_ranks();
    release(&sync_launch);
    current = kNobody;
    next_turn();
#if defined(LOSATOK_SHIM_TSAN)
    past.push_back(std::move(running));
#endif
  }
  acquire(&sync_end);
#if defined(LOSATOK_SHIM_TSAN)
  past.clear();
#endif
  running.reset();
  shared_memory = nullptr;
  return error.empty();
}

void block_barrier(const char* file, unsigned line) {
  Fiber& self = running->fibers[current];
  self.place = {file, line};
  char* sync = &running->sync[self.barriers++ % 2];
  release(sync);
  if (++at_barrier < running->fibers.size()) {
    set_waiting(current, State::kAtBlockBarrier);
    next_turn();
  } else {
    for (const Fiber& other : running->fibers) {
      if (!(other.place == self.place)) {
        fail("a divergent barrier: some threads are at " + other.place.text() + ", others at " + self.place.text());
      }
    }
    at_barrier = 0;
    for (Fiber& fiber : running->fibers) fiber.state = State::kReady;
    draw_ranks();
    next_turn();
  }
  acquire(sync);
}

void warp_barrier(unsigned mask, void* own, WarpAction action, const char* file, unsigned line) {
  Fiber& self = running->fibers[current];
  const unsigned first = current / kLanes * kLanes;
  Warp& warp = running->warps[current / kLanes];
  self.place = {file, line};
  if (mask != 0xffffffffu) fail("a partial mask at " + self.place.text() + ": kernels use full warps");
  warp.brought[current % kLanes] = own;
  char* sync = &warp.sync[self.collectives++ % 2];
  release(sync);
  if (++warp.arrived < kLanes) {
    set_waiting(current, State::kAtWarpBarrier);
    next_turn();
  } else {
    for (unsigned t = first; t < first + kLanes; ++t) {
      if (!(running->fibers[t].place == self.place)) {
        fail("a divergent warp: some lanes are at " + running->fibers[t].place.text() + ", others at " +
             self.place.text());
      }
    }
    warp.arrived = 0;
    if (action != nullptr) {
      acquire(sync);
      action(warp.brought);
      release(sync);
    }
    for (unsigned t = first; t < first + kLanes; ++t) set_ready(t);
    next_turn();
  }
  acquire(sync);
}

void warp_exchange(unsigned mask, const void* own, void* other, size_t bytes, unsigned source_lane, const char* file,
                   unsigned line) {
  // Two sets of slots in turn: a lane may be at most one exchange ahead of another.
  Warp& warp = running->warps[current / kLanes];
  const unsigned slot = running->fibers[current].exchanges++ % 2;
  std::memcpy(warp.values[slot][current % kLanes], own, bytes);
  warp_barrier(mask, nullptr, nullptr, file, line);
  std::memcpy(other, warp.values[slot][source_lane % kLanes], bytes);
}

void async_copy(void* shared, const void* source, int bytes, int whole) {
  if (reinterpret_cast<uintptr_t>(shared) % whole || reinterpret_cast<uintptr_t>(source) % whole || bytes < 0 ||
      bytes > whole) {
    fail("an asynchronous copy that is misaligned or of " + std::to_string(bytes) + " bytes");
  }
  auto& copies = running->fibers[current].copies;
  if (copies.empty()) copies.emplace_back();
  copies.back().push_back({shared, source, bytes, whole});
}

void async_commit() {
  auto& copies = running->fibers[current].copies;
  if (copies.empty()) copies.emplace_back();
  copies.emplace_back();
}

void async_wait(int pending) {
  auto& copies = running->fibers[current].copies;
  while (copies.size() > static_cast<size_t>(pending) + 1) {  // the last is the open group
    copy_now(copies.front());
    copies.pop_front();
  }
}

}  // namespace host_shim
