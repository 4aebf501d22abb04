// Copies of 16 bytes from global to shared memory that run beside the arithmetic: the one place with PTX.
//
// A thread starts copies, closes them into a group, and waits until at most N of its latest groups are in flight; what
// it copied is then visible to it, and to the block after a barrier. Before sm_80 the body is a plain copy.
#pragma once

#include "cuda/device.cuh"

namespace losatok::cuda {

// Copies the first `bytes` (0..16) of source and fills the rest of the 16 bytes with zeros. Both ends are 16-byte
// aligned; with bytes = 0 the source is not read.
__device__ __forceinline__ void async_copy_16(void* shared, const void* source, int bytes) {
#if defined(LOSATOK_HOST_SHIM)
  host_shim::async_copy(shared, source, bytes, 16);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(address), "l"(source), "r"(bytes) : "memory");
#else
  for (int i = 0; i < 16; ++i) {
    static_cast<char*>(shared)[i] = i < bytes ? static_cast<const char*>(source)[i] : 0;
  }
#endif
}

// Closes the copies started since the last call into one group, which may be empty.
__device__ __forceinline__ void async_copy_commit() {
#if defined(LOSATOK_HOST_SHIM)
  host_shim::async_commit();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;\n" ::: "memory");
#endif
}

// Waits until at most kPending of this thread's groups are in flight.
template <int kPending>
__device__ __forceinline__ void async_copy_wait() {
#if defined(LOSATOK_HOST_SHIM)
  host_shim::async_wait(kPending);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
#endif
}

}  // namespace losatok::cuda
