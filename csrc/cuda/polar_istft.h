// Launchers of polar_istft: what goes before and after the transforms of cuFFT, forward and backward. Pointers are to
// device memory. A call takes `rows` frames from `first` on of all B T, so that what lies between the steps stays
// small. Every launcher returns the launch's error and waits for nothing.
#pragma once

#include "cuda/launch_types.h"

namespace losatok::cuda {

// Which frames of [B * T] a call takes.
struct FrameRange {
  Frames frames;
  int64_t first, rows;
};

// How frames meet: `size` samples each, `hop` apart, times window [size]; (size - hop) / 2 samples are trimmed.
struct Overlap {
  const float* window;
  int size, hop;
};

// spectrum [rows, bins] complex = min(exp(m), 100) (cos p + i sin p) of head [B, T, 2 bins]; zeros past a length.
struct PolarSpectrum {
  Clips head;
  float* spectrum;
  FrameRange range;
};
cudaError_t polar_spectrum(DType dtype, const PolarSpectrum& arguments, cudaStream_t stream);

// audio [B, hop T] of the range's frames: the sum of the frames that meet at a sample, times the window, over the sum
// of its squares there and over size (the inverse transform did not divide). waves [*, size] begins with frame
// first_wave and has every frame within the clip that meets the range.
struct OverlapFrames {
  const float* waves;
  int64_t first_wave;
  Overlap overlap;
  void* audio;
  FrameRange range;
};
cudaError_t overlap_frames(DType dtype, const OverlapFrames& arguments, cudaStream_t stream);

// The transpose: waves [rows, size] from grad [B, hop T].
struct CutFrames {
  const void* grad;
  Overlap overlap;
  float* waves;
  FrameRange range;
};
cudaError_t cut_frames(DType dtype, const CutFrames& arguments, cudaStream_t stream);

// grad_head [B, T, 2 bins] of the range's frames, from transformed [rows, bins] complex, the real transform of waves.
struct PolarGradient {
  Clips head;
  const float* transformed;
  void* grad_head;
  FrameRange range;
};
cudaError_t polar_gradient(DType dtype, const PolarGradient& arguments, cudaStream_t stream);

}  // namespace losatok::cuda
