// The layer under every kernel: element types, shared memory, launches and reductions.
//
// A .cu file compiles with nvcc for a GPU, and with a C++20 compiler and LOSATOK_HOST_SHIM for tests on a CPU
// (tests/host_shim). So kernels keep these rules: dynamic shared memory through LOSATOK_SHARED, launches through
// launch(), every thread reaches every barrier and collective, full-warp masks, matrix fragments opaque, PTX only in
// async_copy.cuh.
#pragma once

#include "cuda/launch_types.h"

#if defined(LOSATOK_HOST_SHIM)
#include "host_shim.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <mma.h>

// The block's dynamic shared memory as one struct of fixed-size arrays; the launcher asks for sizeof(Type) bytes.
#define LOSATOK_SHARED(Type, name)                                       \
  extern __shared__ __align__(128) unsigned char losatok_shared_bytes[]; \
  Type& name = *reinterpret_cast<Type*>(losatok_shared_bytes)

namespace losatok::cuda {

// Launches a kernel and returns the launch's error. An empty grid is no launch.
template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, unsigned block, size_t shared_bytes, cudaStream_t stream,
                   Arguments... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
  if (shared_bytes > 48 * 1024) {  // more than the default limit has to be asked for
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  // clang-format off
  kernel<<<grid, block, shared_bytes, stream>>>(static_cast<Parameters>(arguments)...);
  // clang-format on
  return cudaGetLastError();
}

}  // namespace losatok::cuda
#endif

namespace losatok::cuda {

constexpr int kWarp = 32;
constexpr unsigned kFullMask = 0xffffffffu;

using BFloat16 = __nv_bfloat16;
using Half = __half;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(BFloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(Half x) { return __half2float(x); }

template <typename T>
__device__ __forceinline__ T from_float(float x) {
  if constexpr (sizeof(T) == 4) {
    return x;
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    return __float2bfloat16(x);
  } else {
    return __float2half(x);
  }
}

template <typename T>
constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

// A grid of `blocks` blocks along x, or of none when they do not fit CUDA's limit; launchers check with fits_grid.
inline bool fits_grid(int64_t blocks) { return blocks <= 0x7fffffff; }

template <typename T>
__device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(kFullMask, x, offset);
  return x;
}

// Sum over a block of kThreads threads in a fixed order; the result is valid in every thread. `scratch` has a slot per
// warp and may be used again at once.
template <int kThreads, typename T>
__device__ __forceinline__ T block_sum(T x, T (&scratch)[kThreads / kWarp]) {
  x = warp_sum(x);
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = x;
  __syncthreads();
  T total = 0;
#pragma unroll
  for (int i = 0; i < kThreads / kWarp; ++i) total += scratch[i];
  __syncthreads();
  return total;
}

// How many frames of item b count: 0..T.
__device__ __forceinline__ int64_t valid_length(const Frames& frames, int64_t b) {
  if (frames.lengths == nullptr) return frames.time;
  const int64_t length = frames.lengths[b];
  return length < 0 ? 0 : (length > frames.time ? frames.time : length);
}

// Whether row n of [B * T] counts.
__device__ __forceinline__ bool valid_row(const Frames& frames, int64_t n) {
  return frames.lengths == nullptr || n % frames.time < valid_length(frames, n / frames.time);
}

// Calls body.template operator()<T>() for the element type: one table for every launcher.
template <typename Body>
cudaError_t for_dtype(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::kFloat:
      return body.template operator()<float>();
    case DType::kBFloat16:
      return body.template operator()<BFloat16>();
    case DType::kHalf:
      return body.template operator()<Half>();
  }
  return cudaErrorInvalidValue;
}

}  // namespace losatok::cuda
