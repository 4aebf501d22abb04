// Stands in for c10's header of this name: the tensors of the host shim are on the CPU, and there is no device to
// choose.
#pragma once

#include <c10/core/Device.h>

namespace c10::cuda {

struct CUDAGuard {
  explicit CUDAGuard(Device) {}
};

}  // namespace c10::cuda
