// Finite scalar quantization, a thread per row, and affine integers, a warp per row.
#include "cuda/quantize.cuh"
#include "cuda/quantize_scalar.h"

namespace losatok::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRowsPerBlock = kThreads / kWarp;

template <typename T>
__device__ __forceinline__ const T* level_row(const LevelRows& rows, int64_t n) {
  const int64_t time = rows.frames.time;
  return static_cast<const T*>(rows.data) + n / time * rows.batch_stride + n % time * rows.row_stride;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    fsq_quantize_kernel(const LevelRows rows, const Levels levels, T* quantized, int64_t* indices) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (n >= rows.frames.batch * rows.frames.time) return;
  const bool valid = valid_row(rows.frames, n);
  const T* row = level_row<T>(rows, n);
  T* out = quantized + n * levels.features;
  int64_t index = 0, weight = 1;
  for (int j = 0; j < levels.features; ++j) {
    if (!valid) {
      out[j] = from_float<T>(0.f);
      continue;
    }
    const int count = levels.count[j], half = count / 2;
    const float squeezed = tanhf(to_float(row[j * rows.feature_stride]) + levels.shift[j]);
    float level = rintf(squeezed * levels.half_range[j] - levels.offset[j]);
    const float lowest = -static_cast<float>(half), highest = static_cast<float>(count - 1 - half);
    level = level < lowest ? lowest : level;  // written so that a NaN stays one
    level = level > highest ? highest : level;
    out[j] = from_float<T>(level / static_cast<float>(half));
    index += (level == level ? static_cast<int64_t>(level) + half : half) * weight;
    weight *= count;
  }
  indices[n] = valid ? index : -1;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    fsq_gradient_kernel(const LevelRows rows, const Levels levels, const float* grad, T* grad_x) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (n >= rows.frames.batch * rows.frames.time) return;
  const bool valid = valid_row(rows.frames, n);
  const T* row = level_row<T>(rows, n);
  for (int j = 0; j < levels.features; ++j) {
    float value = 0.f;
    if (valid) {
      const float squeezed = tanhf(to_float(row[j * rows.feature_stride]) + levels.shift[j]);
      const float slope = levels.half_range[j] / static_cast<float>(levels.count[j] / 2);
      value = grad[n * levels.features + j] * slope * (1.f - squeezed * squeezed);
    }
    grad_x[n * levels.features + j] = from_float<T>(value);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    fsq_dequantize_kernel(const int64_t* indices, int64_t rows, int64_t size, const Levels levels, T* values) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (n >= rows) return;
  const bool known = indices[n] >= 0 && indices[n] < size;
  int64_t rest = known ? indices[n] : 0;
  for (int j = 0; j < levels.features; ++j) {
    const int count = levels.count[j], half = count / 2;
    const int digit = static_cast<int>(rest % count);
    rest /= count;
    const float value = known ? static_cast<float>(digit - half) / static_cast<float>(half) : 0.f;
    values[n * levels.features + j] = from_float<T>(value);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    affine_quantize_kernel(const T* x, int64_t rows, int64_t columns, int64_t stride, int bits, uint8_t* packed,
                           float* scale, float* offset) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (n >= rows) return;  // a whole warp; no barrier follows
  const T* row = x + n * stride;
  float low = kInfinity, high = -kInfinity;
  int bad = 0;
  for (int64_t j = lane; j < columns; j += kWarp) {
    const float value = to_float(row[j]);
    low = fminf(low, value);
    high = fmaxf(high, value);
    bad |= !(fabsf(value) <= kLargest);
  }
  bad = warp_max(bad);
  low = bad ? 0.f : warp_min(low);
  high = bad ? 0.f : warp_max(high);
  // In double: the range may overflow float, and the scale underflow it.
  const int top = (1 << bits) - 1;
  const double least = low, span = static_cast<double>(high) - least;
  float step = static_cast<float>(span / top);
  if (static_cast<double>(step) * top < span) step = nextafterf(step, kInfinity);  // never below the range
  const double divisor = step > 0.f ? static_cast<double>(step) : 1.;  // not its inverse, which may overflow
  if (lane == 0) {
    scale[n] = bad ? nanf("") : step;
    offset[n] = bad ? nanf("") : low;
  }
  const auto integer = [&](int64_t j) {
    if (bad || j >= columns) return 0;
    const double q = rint((static_cast<double>(to_float(row[j])) - least) / divisor);
    return static_cast<int>(q > top ? top : q);
  };
  const int64_t held = bits == 8 ? columns : ceil_div<int64_t>(columns, 2);
  for (int64_t j = lane; j < held; j += kWarp) {
    const int q = bits == 8 ? integer(j) : integer(2 * j) | integer(2 * j + 1) << 4;
    packed[n * held + j] = static_cast<uint8_t>(q);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    affine_dequantize_kernel(const uint8_t* packed, const double* scale, const double* offset, int64_t rows,
                             int64_t columns, int bits, T* values) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= rows * columns) return;
  const int64_t n = i / columns, j = i % columns;
  const int64_t held = bits == 8 ? columns : ceil_div<int64_t>(columns, 2);
  const int q = bits == 8 ? packed[i] : packed[n * held + j / 2] >> (4 * (j % 2)) & 15;
  values[i] = from_float<T>(static_cast<float>(offset[n] + scale[n] * q));
}

// The grid of a kernel with `per_block` of `count` to a block; empty where CUDA has no grid that large.
bool grid_of(int64_t count, int64_t per_block, dim3* grid) {
  const int64_t blocks = ceil_div(count, per_block);
  *grid = dim3(static_cast<unsigned>(blocks));
  return fits_grid(blocks);
}

}  // namespace

cudaError_t fsq_quantize(DType dtype, const LevelRows& rows, const Levels& levels, void* quantized, int64_t* indices,
                         cudaStream_t stream) {
  return for_dtype(dtype, [&]<typename T>() {
    dim3 grid;
    if (!grid_of(rows.frames.batch * rows.frames.time, kThreads, &grid)) return cudaErrorInvalidValue;
    return launch(fsq_quantize_kernel<T>, grid, kThreads, 0, stream, rows, levels, static_cast<T*>(quantized), indices);
  });
}

cudaError_t fsq_gradient(DType dtype, const LevelRows& rows, const Levels& levels, const float* grad, void* grad_x,
                         cudaStream_t stream) {
  return for_dtype(dtype, [&]<typename T>() {
    dim3 grid;
    if (!grid_of(rows.frames.batch * rows.frames.time, kThreads, &grid)) return cudaErrorInvalidValue;
    return launch(fsq_gradient_kernel<T>, grid, kThreads, 0, stream, rows, levels, grad, static_cast<T*>(grad_x));
  });
}

cudaError_t fsq_dequantize(DType dtype, const int64_t* indices, int64_t rows, int64_t size, const Levels& levels,
                           void* values, cudaStream_t stream) {
  return for_dtype(dtype, [&]<typename T>() {
    dim3 grid;
    if (!grid_of(rows, kThreads, &grid)) return cudaErrorInvalidValue;
    return launch(fsq_dequantize_kernel<T>, grid, kThreads, 0, stream, indices, rows, size, levels,
                  static_cast<T*>(values));
  });
}

cudaError_t affine_quantize(DType dtype, const void* x, int64_t rows, int64_t columns, int64_t stride, int bits,
                            uint8_t* packed, float* scale, float* offset, cudaStream_t stream) {
  return for_dtype(dtype, [&]<typename T>() {
    dim3 grid;
    if (!grid_of(rows, kRowsPerBlock, &grid)) return cudaErrorInvalidValue;
    return launch(affine_quantize_kernel<T>, grid, kThreads, 0, stream, static_cast<const T*>(x), rows, columns, stride,
                  bits, packed, scale, offset);
  });
}

cudaError_t affine_dequantize(DType dtype, const uint8_t* packed, const double* scale, const double* offset,
                              int64_t rows, int64_t columns, int bits, void* values, cudaStream_t stream) {
  return for_dtype(dtype, [&]<typename T>() {
    dim3 grid;
    if (!grid_of(rows * columns, kThreads, &grid)) return cudaErrorInvalidValue;
    return launch(affine_dequantize_kernel<T>, grid, kThreads, 0, stream, packed, scale, offset, rows, columns, bits,
                  static_cast<T*>(values));
  });
}

}  // namespace losatok::cuda
