// Launchers of depthwise_conv_norm. Pointers are to device memory; x and grad are rows of clips with strides (Clips),
// everything else is dense. Every launcher returns the launch's error and waits for nothing.
#pragma once

#include "cuda/launch_types.h"

namespace losatok::cuda {

// The most channels that the kernels take: four frames of them, and their sums, have to fit 99 KB of shared memory.
constexpr int64_t kMaxConvChannels = 4096;

// The convolution over time of each channel alone: x [B, T, C], weight [taps, C], bias [C] or null, x's type all. It
// finds zeros past a length.
struct DepthwiseConv {
  Clips x;
  const void* weight;
  const void* bias;
  int64_t taps;
  Frames frames;
};

// y [B, T, C] = LN of what is convolved, times gain, plus shift ([C], or null for ones and zeros); zeros past a length.
struct ConvNorm {
  DepthwiseConv conv;
  const void* gain;
  const void* shift;
  float eps;
  void* y;
};
cudaError_t conv_norm(DType dtype, const ConvNorm& arguments, cudaStream_t stream);

// Both steps of the gradient cut the frames of a clip into chunks of so many.
int64_t conv_chunk_frames(const Frames& frames);
int64_t conv_chunks(const Frames& frames);

// grad_convolved [B, T, C], the gradient by what is convolved, written below the lengths only. The sums of a chunk's
// frames go to rows taps + 1 (gain's) and taps + 2 (shift's) of parts [B, chunks, taps + 3, C], which may be null.
struct ConvNormGradient {
  DepthwiseConv conv;
  const void* gain;
  float eps;
  Clips grad;
  float* grad_convolved;
  float* parts;
};
cudaError_t conv_norm_gradient(DType dtype, const ConvNormGradient& arguments, cudaStream_t stream);

// From grad_convolved: grad_x [B, T, C], zero past a length, may be null; rows 0 .. taps of parts, the weight's and the
// bias's, may be null.
struct ConvGradient {
  DepthwiseConv conv;
  const float* grad_convolved;
  void* grad_x;
  float* parts;
};
cudaError_t conv_gradient(DType dtype, const ConvGradient& arguments, cudaStream_t stream);

}  // namespace losatok::cuda
