// Launchers of gated_residual. Pointers are to device memory; inputs are rows of clips with strides (Clips), outputs
// are dense. Every launcher returns the launch's error and waits for nothing.
#pragma once

#include "cuda/launch_types.h"

namespace losatok::cuda {

// y [B, T, C] = x + gate branch.
struct GatedResidual {
  Clips x, branch, gate;
  void* y;
  int64_t batch, time;
};
cudaError_t gated_residual(DType dtype, const GatedResidual& arguments, cudaStream_t stream);

// grad_branch [B, T, C] = gate grad; and of the gate's gradient either grad branch, grad_gate [B, T, C], or its sums
// over chunks of frames, gate_parts [B, modulation_chunks(T), C]; the other is null.
struct GatedResidualBackward {
  Clips grad, branch, gate;
  void* grad_branch;
  void* grad_gate;
  float* gate_parts;
  int64_t batch, time;
};
cudaError_t gated_residual_backward(DType dtype, const GatedResidualBackward& arguments, cudaStream_t stream);

}  // namespace losatok::cuda
