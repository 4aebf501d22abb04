// Threads of one CUDA block as fibers of one CPU thread: scheduling, barriers, and what kernels ask of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

namespace host_shim {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

// What a running kernel reads as threadIdx, blockIdx, blockDim, gridDim and its dynamic shared memory.
extern Index thread_index, block_index, block_size, grid_size;
extern unsigned char* shared_memory;

// In which order runnable threads take their turns. Priorities are drawn anew by the seed after every block barrier.
enum class Order : int { kForward = 0, kReverse = 1, kPriority = 2 };
void set_order(Order order, uint64_t seed);

// Runs `body` once per thread, blocks in turn. False when a kernel broke a rule; last_error() then says what and where.
bool run(const std::function<void()>& body, Index grid, Index block, size_t shared_bytes);
const char* last_error();

// Called, where it is set, with each kernel that is launched and the shared memory that its launch asks for.
using LaunchListener = void (*)(const void* kernel, size_t shared_bytes);
extern LaunchListener on_launch;

// Ends the launch with an error from inside a kernel.
[[noreturn]] void fail(const std::string& message);

// __syncthreads: all threads of the block arrive, at the same place in the source.
void block_barrier(const char* file, unsigned line);

// All 32 lanes of the warp arrive with the same mask (all lanes) at the same place. Each brings a pointer; the last to
// arrive runs `action` on the 32 pointers, in lane order, before any lane goes on.
using WarpAction = void (*)(void* const* lanes);
void warp_barrier(unsigned mask, void* own, WarpAction action, const char* file, unsigned line);

// A value of at most 16 bytes from another lane.
void warp_exchange(unsigned mask, const void* own, void* other, size_t bytes, unsigned source_lane, const char* file,
                   unsigned line);

unsigned lane();

// Asynchronous copies: carried out as late as the waits allow, so that a missing wait is seen.
void async_copy(void* shared, const void* source, int bytes, int whole);
void async_commit();
void async_wait(int pending);

}  // namespace host_shim
