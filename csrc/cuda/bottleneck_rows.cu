// The bottleneck's elementwise and row kernels: activations, and the cosine loss on restored rows.
#include "cuda/activation.cuh"
#include "cuda/bottleneck.h"
#include "cuda/rows.cuh"

namespace losatok::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRowsPerBlock = kThreads / kWarp;

// out[i] = function(out[i], values[i]) where kDerivative, else act(values[i]); four elements a thread.
template <typename T, bool kDerivative>
__global__ void __launch_bounds__(kThreads)
    elements_kernel(const T* values, T* out, int64_t count, bool four, Activation activation) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * 4;
  if (i >= count) return;
  float x[4], y[4];
  const bool whole = four && i + 4 <= count;
  load_four(values, i, count, whole, x);
  if constexpr (kDerivative) load_four(static_cast<const T*>(out), i, count, whole, y);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    y[j] = kDerivative ? y[j] * activate_derivative(activation, x[j]) : activate(activation, x[j]);
  }
  store_four(out, i, count, whole, y);
}

template <bool kDerivative>
cudaError_t launch_elements(DType dtype, const void* values, void* out, int64_t count, Activation activation,
                            cudaStream_t stream) {
  return for_dtype(dtype, [&]<typename T>() {
    const int64_t blocks = ceil_div<int64_t>(count, 4 * kThreads);
    if (!fits_grid(blocks)) return cudaErrorInvalidValue;
    const bool four = reads_four<T>(values, 4, 4) && reads_four<T>(out, 4, 4);
    return launch(elements_kernel<T, kDerivative>, dim3(static_cast<unsigned>(blocks)), kThreads, 0, stream,
                  static_cast<const T*>(values), static_cast<T*>(out), count, four, activation);
  });
}

template <typename T, typename U>
struct RowsParameters {
  T* restored;
  const U* target;
  float* loss;
  int64_t rows, features, first_row;
  Frames frames;
  bool write_grad, four;
};

// A warp per row: norms, then the loss and the gradient's part along the row, then the gradient in place.
template <typename T, typename U>
__global__ void __launch_bounds__(kThreads) normalized_rows_kernel(const RowsParameters<T, U> p) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (row >= p.rows) return;  // a whole warp; no barrier follows
  const bool valid = valid_row(p.frames, p.first_row + row);
  T* restored = p.restored + row * p.features;
  const U* target = p.target + row * p.features;
  // Rows past a length take no part: neither read nor multiplied by zero, since they may hold NaN.
  const int64_t features = valid ? p.features : 0;
  const float norm_square = row_square_sum(static_cast<const T*>(restored), features, p.four);
  const float inverse = inverse_norm(norm_square);
  const float target_inverse = inverse_norm(row_square_sum(target, features, p.four));
  float loss = 0.f, along = 0.f;
  for (int64_t c = lane * 4; c < features; c += 4 * kWarp) {
    float r[4], t[4];
    load_four(static_cast<const T*>(restored), c, features, p.four, r);
    load_four(target, c, features, p.four, t);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float difference = r[i] * inverse - t[i] * target_inverse;
      loss = fmaf(difference, difference, loss);
      along = fmaf(r[i] * inverse, 2.f * difference, along);
    }
  }
  loss = warp_sum(loss);
  along = warp_sum(along);
  if (lane == 0) p.loss[row] = loss;
  if (!p.write_grad) return;
  // Below the bound on the norm, normalize is a multiplication, whose gradient has no part along the row to take out.
  if (sqrtf(norm_square) <= kNormEps) along = 0.f;
  for (int64_t c = lane * 4; c < p.features; c += 4 * kWarp) {
    float grad[4] = {0.f, 0.f, 0.f, 0.f};
    if (valid) {
      float r[4], t[4];
      load_four(static_cast<const T*>(restored), c, features, p.four, r);
      load_four(target, c, features, p.four, t);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float unit = r[i] * inverse;
        grad[i] = inverse * (2.f * (unit - t[i] * target_inverse) - unit * along);
      }
    }
    store_four(restored, c, p.features, p.four, grad);
  }
}

}  // namespace

cudaError_t activate(DType dtype, const void* values, void* activated, int64_t count, Activation activation,
                     cudaStream_t stream) {
  return launch_elements<false>(dtype, values, activated, count, activation, stream);
}

cudaError_t multiply_by_derivative(DType dtype, void* grad, const void* hidden, int64_t count, Activation activation,
                                   cudaStream_t stream) {
  return launch_elements<true>(dtype, hidden, grad, count, activation, stream);
}

cudaError_t normalized_rows(DType dtype, DType target_dtype, const NormalizedRows& a, cudaStream_t stream) {
  return for_dtype(dtype, [&]<typename T>() {
    return for_dtype(target_dtype, [&]<typename U>() {
      const int64_t blocks = ceil_div<int64_t>(a.rows, kRowsPerBlock);
      if (!fits_grid(blocks)) return cudaErrorInvalidValue;
      const bool four =
          reads_four<T>(a.restored, a.features, a.features) && reads_four<U>(a.target, a.features, a.features);
      const RowsParameters<T, U> p{static_cast<T*>(a.restored),
                                   static_cast<const U*>(a.target),
                                   a.loss,
                                   a.rows,
                                   a.features,
                                   a.first_row,
                                   a.frames,
                                   a.write_grad,
                                   four};
      return launch(normalized_rows_kernel<T, U>, dim3(static_cast<unsigned>(blocks)), kThreads, 0, stream, p);
    });
  });
}

}  // namespace losatok::cuda
