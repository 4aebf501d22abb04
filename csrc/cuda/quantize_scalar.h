// Launchers of quantization without a codebook. Pointers are to device memory. Every launcher returns the launch's
// error and waits for nothing.
#pragma once

#include "cuda/launch_types.h"

namespace losatok::cuda {

// Levels have at least two values, and their product is below 2^63.
constexpr int kMaxLevels = 62;

// The constants of each dimension, passed to kernels by value: the integer of a value x is round(tanh(x + shift) *
// half_range - offset), within -(count / 2) .. count - 1 - count / 2.
struct Levels {
  int features;
  int count[kMaxLevels];
  float shift[kMaxLevels], half_range[kMaxLevels], offset[kMaxLevels];
};

struct LevelRows {
  const void* data;  // [B, T, features]
  int64_t batch_stride, row_stride, feature_stride;
  Frames frames;
};

// quantized [B T, features] and indices [B T]; 0 and -1 past a length.
cudaError_t fsq_quantize(DType dtype, const LevelRows& rows, const Levels& levels, void* quantized, int64_t* indices,
                         cudaStream_t stream);

// grad_x [B T, features] of grad [B T, features], straight through the rounding; 0 past a length.
cudaError_t fsq_gradient(DType dtype, const LevelRows& rows, const Levels& levels, const float* grad, void* grad_x,
                         cudaStream_t stream);

// values [rows, features] of indices [rows]; zeros for one outside 0 .. size - 1.
cudaError_t fsq_dequantize(DType dtype, const int64_t* indices, int64_t rows, int64_t size, const Levels& levels,
                           void* values, cudaStream_t stream);

// packed [rows, columns], or of 4 bits [rows, ceil(columns / 2)] with the even value in the low half, scale and offset
// [rows] of x [rows, columns], rows `stride` apart. A row with a value that is not finite gets NaN for both.
cudaError_t affine_quantize(DType dtype, const void* x, int64_t rows, int64_t columns, int64_t stride, int bits,
                            uint8_t* packed, float* scale, float* offset, cudaStream_t stream);

// values [rows, columns] = offset + scale q.
cudaError_t affine_dequantize(DType dtype, const uint8_t* packed, const double* scale, const double* offset,
                              int64_t rows, int64_t columns, int bits, void* values, cudaStream_t stream);

}  // namespace losatok::cuda
