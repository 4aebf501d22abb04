// What the bindings ask of the CUDA runtime, answered for the host shim, and how tests choose the order of threads and
// read errors.
#include <cuda_runtime_api.h>

#include "fibers.h"

extern "C" {

// In the library of tests alone (linked with -Bsymbolic): a CUDA runtime in the same process keeps its own.
cudaError_t CUDARTAPI cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t CUDARTAPI cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = 4;  // multiprocessors: few, so that tiny shapes are split some ways and not others
  return cudaSuccess;
}

void losatok_shim_set_order(int order, uint64_t seed) {
  host_shim::set_order(static_cast<host_shim::Order>(order), seed);
}

const char* losatok_shim_last_error() { return host_shim::last_error(); }
}
