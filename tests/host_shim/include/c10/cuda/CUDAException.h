// Stands in for c10's header of this name: launch errors carry the host shim's message.
#pragma once

#include <c10/util/Exception.h>

#include "fibers.h"

#define C10_CUDA_CHECK(expression)                                                                         \
  do {                                                                                                     \
    const cudaError_t shim_error = (expression);                                                           \
    TORCH_CHECK(shim_error == cudaSuccess, "CUDA error ", int(shim_error), ": ", host_shim::last_error()); \
  } while (0)
