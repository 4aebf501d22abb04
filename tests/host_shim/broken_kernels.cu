// Kernels with one mistake each, which the tests of the host shim expect it to find, and one without.
#include <cstdio>
#include <cstdlib>

#include "cuda/async_copy.cuh"

namespace losatok::cuda {
namespace {

constexpr int kThreads = 128;

struct Shared {
  alignas(16) float values[kThreads];
  float total;
};

__global__ void correct_kernel(const float* in, float* out) {
  LOSATOK_SHARED(Shared, shared);
  shared.values[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = shared.values[kThreads - 1 - threadIdx.x];
}

__global__ void missing_barrier_kernel(const float* in, float* out) {
  LOSATOK_SHARED(Shared, shared);
  shared.values[threadIdx.x] = in[threadIdx.x];
  out[threadIdx.x] = shared.values[kThreads - 1 - threadIdx.x];
}

// The barrier that keeps a value until everybody has read it is missing.
__global__ void overwritten_kernel(const float* in, float* out) {
  LOSATOK_SHARED(Shared, shared);
  float sum = 0.f;
  for (int round = 0; round < 2; ++round) {
    shared.values[threadIdx.x] = in[threadIdx.x] + round;
    __syncthreads();
    sum += shared.values[kThreads - 1 - threadIdx.x];
  }
  out[threadIdx.x] = sum;
}

__global__ void divergent_barrier_kernel(const float* in, float* out) {
  if (threadIdx.x < 32) {
    out[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
  } else {
    out[threadIdx.x] = -in[threadIdx.x];
    __syncthreads();
  }
}

__global__ void early_return_kernel(const float* in, float* out) {
  if (threadIdx.x == 5) return;
  out[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
}

__global__ void half_warp_kernel(const float* in, float* out) {
  float x = in[threadIdx.x];
  if (threadIdx.x % 32 < 16) x = __shfl_xor_sync(0x0000ffffu, x, 8);
  out[threadIdx.x] = x;
}

__global__ void lost_lanes_kernel(const float* in, float* out) {
  float x = in[threadIdx.x];
  if (threadIdx.x % 32 < 16) x = __shfl_xor_sync(kFullMask, x, 8);
  out[threadIdx.x] = x;
}

// The copies are committed, but nobody waits for them before the barrier.
__global__ void missing_wait_kernel(const float* in, float* out) {
  LOSATOK_SHARED(Shared, shared);
  if (threadIdx.x < kThreads / 4) async_copy_16(&shared.values[threadIdx.x * 4], in + threadIdx.x * 4, 16);
  async_copy_commit();
  __syncthreads();
  out[threadIdx.x] = shared.values[threadIdx.x];
  async_copy_wait<0>();
}

__global__ void forgotten_copy_kernel(const float* in, float* out) {
  LOSATOK_SHARED(Shared, shared);
  async_copy_16(&shared.values[threadIdx.x / 4 * 4], in + threadIdx.x / 4 * 4, 16);
  async_copy_commit();
  out[threadIdx.x] = in[threadIdx.x];
}

// Takes lane l to hold row l / 2 of a fragment.
__global__ void assumed_mapping_kernel(const float* in, float* out) {
  nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float> f;
  nvcuda::wmma::load_matrix_sync(f, in, 16, nvcuda::wmma::mem_row_major);
  if (threadIdx.x < 16) out[threadIdx.x] = f.x[0];
}

// For AddressSanitizer and UndefinedBehaviorSanitizer.
__global__ void past_the_end_kernel(const float* in, float* out) {
  LOSATOK_SHARED(Shared, shared);
  float* values = shared.values;
  values[threadIdx.x + 8] = in[threadIdx.x];  // by a pointer: past the end of the block's memory for the last threads
  __syncthreads();
  out[threadIdx.x] = shared.values[threadIdx.x];
}

__global__ void past_the_array_kernel(const float* in, float* out) {
  LOSATOK_SHARED(Shared, shared);
  shared.values[threadIdx.x + 1] = in[threadIdx.x];  // into the array's neighbour
  __syncthreads();
  out[threadIdx.x] = shared.total;
}

__global__ void misaligned_kernel(const float* in, float* out) {
  const float4 four = *reinterpret_cast<const float4*>(in + 1);
  out[threadIdx.x] = four.x;
}

// For ThreadSanitizer: threads of a block, then blocks, add to one value without order.
__global__ void race_kernel(const float* in, float* out) {
  LOSATOK_SHARED(Shared, shared);
  if (threadIdx.x == 0) shared.total = 0.f;
  __syncthreads();
  shared.total += in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = shared.total;
}

__global__ void block_race_kernel(const float* in, float* out) {
  if (threadIdx.x == 0) out[0] = in[0] + static_cast<float>(blockIdx.x);
}

struct Named {
  const char* name;
  void (*kernel)(const float*, float*);
  unsigned blocks;
};

constexpr Named kKernels[] = {{"correct", correct_kernel, 1},
                              {"missing_barrier", missing_barrier_kernel, 1},
                              {"overwritten", overwritten_kernel, 1},
                              {"divergent_barrier", divergent_barrier_kernel, 1},
                              {"early_return", early_return_kernel, 1},
                              {"half_warp", half_warp_kernel, 1},
                              {"lost_lanes", lost_lanes_kernel, 1},
                              {"missing_wait", missing_wait_kernel, 1},
                              {"forgotten_copy", forgotten_copy_kernel, 1},
                              {"assumed_mapping", assumed_mapping_kernel, 1},
                              {"past_the_end", past_the_end_kernel, 1},
                              {"past_the_array", past_the_array_kernel, 1},
                              {"misaligned", misaligned_kernel, 1},
                              {"race", race_kernel, 1},
                              {"block_race", block_race_kernel, 2}};

}  // namespace
}  // namespace losatok::cuda

// Runs the kernel of that name on kThreads values (assumed_mapping: 256). 0: it ran; 1: the shim refused; -1: no such
// name.
static int run_broken(const char* name, const float* in, float* out) {
  using namespace losatok::cuda;
  for (const Named& named : kKernels) {
    if (std::strcmp(named.name, name)) continue;
    return launch(named.kernel, dim3(named.blocks), kThreads, sizeof(Shared), nullptr, in, out) != cudaSuccess;
  }
  return -1;
}

// Arguments: the kernel's name, and the order and seed of threads. Prints the outcome, then the outputs.
int main(int count, char** arguments) {
  alignas(32) static float in[256], out[256];
  for (int i = 0; i < 256; ++i) {
    in[i] = static_cast<float>(i);
    out[i] = NAN;
  }
  if (count != 4) return -1;
  host_shim::set_order(static_cast<host_shim::Order>(std::atoi(arguments[2])), std::atoll(arguments[3]));
  const int result = run_broken(arguments[1], in, out);
  std::printf("%d %s\n", result, host_shim::last_error());
  for (int i = 0; i < 128; ++i) std::printf("%g\n", out[i]);
  return result;
}
