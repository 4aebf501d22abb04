// Launchers of layer_norm_modulate. Pointers are to device memory; x, grad and what they come with are rows of clips
// with strides (Clips), outputs are dense. Every launcher returns the launch's error and waits for nothing.
#pragma once

#include "cuda/launch_types.h"

namespace losatok::cuda {

// y [B, T, C] = LN(x) (1 + scale) + shift, mean and rstd [B, T].
struct LayerNormModulate {
  Clips x, shift, scale;
  void* y;
  float* mean;
  float* rstd;
  int64_t batch, time;
  float eps;
};
cudaError_t layer_norm_modulate(DType dtype, const LayerNormModulate& arguments, cudaStream_t stream);

// grad_x [B, T, C]; grad_shift and grad_scale [B, T, C] where they are per frame, else null, and the sums of theirs
// over chunks of frames in shift_parts and scale_parts [B, modulation_chunks(T), C], else null.
struct LayerNormModulateBackward {
  Clips grad, x, scale;
  const float* mean;
  const float* rstd;
  void* grad_x;
  void* grad_shift;
  void* grad_scale;
  float* shift_parts;
  float* scale_parts;
  int64_t batch, time;
};
cudaError_t layer_norm_modulate_backward(DType dtype, const LayerNormModulateBackward& arguments, cudaStream_t stream);

// Into how many chunks the frames of a clip are cut for the sums of gradients: here and in gated_residual.
int64_t modulation_chunks(int64_t time);

}  // namespace losatok::cuda
