// What the codebook ops do element by element: sums of chosen codes, and gradients to rows and to codes.
#include "cuda/quantize.cuh"

namespace losatok::cuda {
namespace {

constexpr int kThreads = 256;

template <typename T, typename U>
__global__ void __launch_bounds__(kThreads) sum_of_codes_kernel(const SumOfCodes p) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= p.rows * p.features) return;
  const int64_t row = i / p.features, column = i % p.features;
  const T* books = static_cast<const T*>(p.books);
  float total = 0.f;
  for (int64_t q = 0; q < p.used; ++q) {
    const int64_t k = p.codes[row * p.used + q];
    if (k >= 0 && k < p.count) total += to_float(books[(q * p.count + k) * p.features + column]);
  }
  static_cast<U*>(p.out)[i] = from_float<U>(total);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    distance_gradient_kernel(const CodedRows rows, const float* weights, const float* codes, int64_t count,
                             const int64_t* indices, T* out) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= rows.frames.batch * rows.frames.time * rows.features) return;
  const int64_t n = i / rows.features, column = i % rows.features, k = indices[n];
  float value = 0.f;
  if (k >= 0 && k < count) value = 2.f * weights[n] * (row_value(rows, n, column) - codes[k * rows.features + column]);
  out[i] = from_float<T>(value);
}

constexpr int kColumns = kWarp;  // of a block
constexpr int kRowLanes = kThreads / kColumns;

struct GradientShared {
  float sums[kRowLanes][kColumns];
};

// Block (k, j): code k, columns j * kColumns ..; the rows of the code are dealt out to kRowLanes sums.
template <typename T>
__global__ void __launch_bounds__(kThreads) code_gradient_kernel(const CodeGradient p) {
  LOSATOK_SHARED(GradientShared, shared);
  const int x = threadIdx.x % kColumns, y = threadIdx.x / kColumns;
  const int64_t k = blockIdx.x, column = static_cast<int64_t>(blockIdx.y) * kColumns + x;
  const int64_t features = p.rows.features, rows = p.rows.frames.batch * p.rows.frames.time;
  float sum = 0.f;
  if (column < features) {
    const float own = p.weights != nullptr ? p.codes[k * features + column] : 0.f;
    for (int64_t i = p.starts[k] + y; i < p.starts[k + 1]; i += kRowLanes) {
      const int64_t n = p.order[i] % rows;
      const float value = row_value(p.rows, n, column);
      sum += p.weights != nullptr ? 2.f * p.weights[n] * (own - value) : value;
    }
  }
  shared.sums[y][x] = sum;
  __syncthreads();
  if (y == 0 && column < features) {
    float total = 0.f;
    for (int i = 0; i < kRowLanes; ++i) total += shared.sums[i][x];
    static_cast<T*>(p.out)[k * features + column] = from_float<T>(total);
  }
}

}  // namespace

cudaError_t sum_of_codes(DType books_dtype, DType out_dtype, const SumOfCodes& arguments, cudaStream_t stream) {
  return for_dtype(books_dtype, [&]<typename T>() {
    return for_dtype(out_dtype, [&]<typename U>() {
      const int64_t blocks = ceil_div<int64_t>(arguments.rows * arguments.features, kThreads);
      if (!fits_grid(blocks)) return cudaErrorInvalidValue;
      return launch(sum_of_codes_kernel<T, U>, dim3(static_cast<unsigned>(blocks)), kThreads, 0, stream, arguments);
    });
  });
}

cudaError_t distance_gradient(const CodedRows& rows, const float* weights, const float* codes, int64_t count,
                              const int64_t* indices, void* out, cudaStream_t stream) {
  return for_dtype(rows.dtype, [&]<typename T>() {
    const int64_t blocks = ceil_div<int64_t>(rows.frames.batch * rows.frames.time * rows.features, kThreads);
    if (!fits_grid(blocks)) return cudaErrorInvalidValue;
    return launch(distance_gradient_kernel<T>, dim3(static_cast<unsigned>(blocks)), kThreads, 0, stream, rows, weights,
                  codes, count, indices, static_cast<T*>(out));
  });
}

cudaError_t code_gradient(DType out_dtype, const CodeGradient& arguments, cudaStream_t stream) {
  return for_dtype(out_dtype, [&]<typename T>() {
    const int64_t columns = ceil_div<int64_t>(arguments.rows.features, kColumns);
    if (!fits_grid(arguments.total) || columns > 65535) return cudaErrorInvalidValue;
    return launch(code_gradient_kernel<T>, dim3(static_cast<unsigned>(arguments.total), static_cast<unsigned>(columns)),
                  kThreads, sizeof(GradientShared), stream, arguments);
  });
}

}  // namespace losatok::cuda
