// What a .cu file sees instead of CUDA when it is compiled as C++ for tests (csrc/cuda/device.cuh includes this).
// See README.md beside it.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <source_location>
#include <type_traits>

#include "fibers.h"

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __forceinline__
#undef __launch_bounds__
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static_assert(false, "shared memory goes through LOSATOK_SHARED")

#define threadIdx (::host_shim::thread_index)
#define blockIdx (::host_shim::block_index)
#define blockDim (::host_shim::block_size)
#define gridDim (::host_shim::grid_size)

#define LOSATOK_SHARED(Type, name) Type& name = *reinterpret_cast<Type*>(::host_shim::shared_memory)

using ShimPlace = std::source_location;  // where a barrier or a collective stands in the kernel's source

inline void __syncthreads(ShimPlace place = ShimPlace::current()) {
  host_shim::block_barrier(place.file_name(), place.line());
}

inline void __syncwarp(unsigned mask = 0xffffffffu, ShimPlace place = ShimPlace::current()) {
  host_shim::warp_barrier(mask, nullptr, nullptr, place.file_name(), place.line());
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, ShimPlace place = ShimPlace::current()) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 16);
  if (width != 32) host_shim::fail("a shuffle narrower than a warp");
  T other;
  host_shim::warp_exchange(mask, &value, &other, sizeof(T), static_cast<unsigned>(source), place.file_name(),
                           place.line());
  return other;
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, ShimPlace place = ShimPlace::current()) {
  return __shfl_sync(mask, value, static_cast<int>(host_shim::lane()) ^ lanes, width, place);
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned lanes, int width = 32, ShimPlace place = ShimPlace::current()) {
  const unsigned lane = host_shim::lane();
  return __shfl_sync(mask, value, static_cast<int>(lane + lanes < 32 ? lane + lanes : lane), width, place);
}

inline unsigned __ballot_sync(unsigned mask, bool predicate, ShimPlace place = ShimPlace::current()) {
  unsigned bits = 0;
  for (int lane = 0; lane < 32; ++lane) {
    // Every lane asks for every lane's vote in the same order.
    if (__shfl_sync(mask, predicate ? 1 : 0, lane, 32, place)) bits |= 1u << lane;
  }
  return bits;
}

inline int __any_sync(unsigned mask, bool predicate, ShimPlace place = ShimPlace::current()) {
  return __ballot_sync(mask, predicate, place) != 0;
}

inline int __all_sync(unsigned mask, bool predicate, ShimPlace place = ShimPlace::current()) {
  return __ballot_sync(mask, predicate, place) == 0xffffffffu;
}

namespace losatok::cuda {

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, unsigned block, size_t shared_bytes, cudaStream_t,
                   Arguments... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
  if (grid.y > 65535 || grid.z > 65535 || shared_bytes > 163 * 1024) return cudaErrorInvalidConfiguration;  // sm_80
  if (host_shim::on_launch) host_shim::on_launch(reinterpret_cast<const void*>(kernel), shared_bytes);
  const auto body = [&] { kernel(static_cast<Parameters>(arguments)...); };
  return host_shim::run(body, {grid.x, grid.y, grid.z}, {block, 1, 1}, shared_bytes) ? cudaSuccess
                                                                                     : cudaErrorLaunchFailure;
}

}  // namespace losatok::cuda

#include "matrix_units.h"
