// Masked copies and sums in a fixed order.
#include "cuda/device.cuh"
#include "cuda/reduce.h"

namespace losatok::cuda {
namespace {

constexpr int kThreads = 256;

template <typename T>
__global__ void __launch_bounds__(kThreads)
    copy_valid_rows_kernel(const T* from, T* to, int64_t count, int64_t columns, int64_t first_row, Frames frames) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  to[i] = valid_row(frames, first_row + i / columns) ? from[i] : from_float<T>(0.f);
}

constexpr int kColumnsPerBlock = kWarp;
constexpr int kRowLanes = kThreads / kColumnsPerBlock;
constexpr int64_t kRowsPerBlock = 1024;

struct ColumnShared {
  float sums[kRowLanes][kColumnsPerBlock];
};

// Block (i, j): columns i * 32 .., rows j * rows_per_block ..; out [blocks along y, columns].
template <typename T, typename U>
__global__ void __launch_bounds__(kThreads)
    column_sums_kernel(const T* values, int64_t rows, int64_t columns, int64_t stride, int64_t rows_per_block, U* out,
                       bool accumulate) {
  LOSATOK_SHARED(ColumnShared, shared);
  const int x = threadIdx.x % kColumnsPerBlock, y = threadIdx.x / kColumnsPerBlock;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kColumnsPerBlock + x;
  const int64_t first = blockIdx.y * rows_per_block;
  const int64_t last = first + rows_per_block < rows ? first + rows_per_block : rows;
  float sum = 0.f;
  if (column < columns) {
    for (int64_t row = first + y; row < last; row += kRowLanes) sum += to_float(values[row * stride + column]);
  }
  shared.sums[y][x] = sum;
  __syncthreads();
  if (y == 0 && column < columns) {
    U& result = out[blockIdx.y * columns + column];
    float total = accumulate ? to_float(result) : 0.f;
    for (int i = 0; i < kRowLanes; ++i) total += shared.sums[i][x];
    result = from_float<U>(total);
  }
}

template <typename T, typename U>
cudaError_t launch_column_sums(const T* values, int64_t rows, int64_t columns, int64_t stride, int64_t rows_per_block,
                               U* out, bool accumulate, cudaStream_t stream) {
  const int64_t x = ceil_div<int64_t>(columns, kColumnsPerBlock);
  const int64_t y = rows > rows_per_block ? ceil_div(rows, rows_per_block) : 1;
  if (!fits_grid(x) || y > 65535) return cudaErrorInvalidValue;
  return launch(column_sums_kernel<T, U>, dim3(static_cast<unsigned>(x), static_cast<unsigned>(y)), kThreads,
                sizeof(ColumnShared), stream, values, rows, columns, stride, rows_per_block, out, accumulate);
}

int64_t rows_per_sum_block(int64_t rows) { return std::max(kRowsPerBlock, ceil_div<int64_t>(rows, 65535)); }

template <typename T>
__global__ void __launch_bounds__(kThreads)
    sum_chunks_kernel(const float* parts, int64_t count, int64_t chunks, int64_t columns, T* sums) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  const float* part = parts + i / columns * chunks * columns + i % columns;
  float sum = 0.f;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += part[chunk * columns];
  sums[i] = from_float<T>(sum);
}

struct SumShared {
  double sums[kThreads / kWarp];
};

__global__ void __launch_bounds__(kThreads) sum_terms_kernel(const float* terms, int64_t count, double* totals) {
  LOSATOK_SHARED(SumShared, shared);
  const float* own = terms + blockIdx.x * count;
  double sum = 0.;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += own[i];
  sum = block_sum<kThreads>(sum, shared.sums);
  if (threadIdx.x == 0) totals[blockIdx.x] = sum;
}

__device__ double mean_terms(const MeanOver& mean, int64_t length) {
  if (!mean.pairs) return static_cast<double>(length) * static_cast<double>(mean.factor);
  const double n = static_cast<double>(length), w = static_cast<double>(mean.window);
  if (mean.window < 0 || mean.window >= length) return n * n;
  return n * (2. * w + 1.) - w * (w + 1.);
}

__global__ void __launch_bounds__(kThreads)
    finish_mean_kernel(const double* totals, int64_t count, MeanOver mean, float* loss, float* scale) {
  LOSATOK_SHARED(SumShared, shared);
  double sum = 0., terms = 0.;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += totals[i];
  for (int64_t b = threadIdx.x; b < mean.frames.batch; b += kThreads) {
    terms += mean_terms(mean, valid_length(mean.frames, b));
  }
  sum = block_sum<kThreads>(sum, shared.sums);
  terms = block_sum<kThreads>(terms, shared.sums);
  if (threadIdx.x == 0) {
    const double inverse = 1. / (terms < 1. ? 1. : terms);
    *scale = static_cast<float>(inverse);
    *loss = static_cast<float>((sum < 0. ? 0. : sum) * inverse);  // NaN stays NaN
  }
}

}  // namespace

cudaError_t copy_valid_rows(DType dtype, const void* from, void* to, int64_t rows, int64_t columns, int64_t first_row,
                            const Frames& frames, cudaStream_t stream) {
  return for_dtype(dtype, [&]<typename T>() {
    const int64_t blocks = ceil_div<int64_t>(rows * columns, kThreads);
    if (!fits_grid(blocks)) return cudaErrorInvalidValue;
    return launch(copy_valid_rows_kernel<T>, dim3(static_cast<unsigned>(blocks)), kThreads, 0, stream,
                  static_cast<const T*>(from), static_cast<T*>(to), rows * columns, columns, first_row, frames);
  });
}

int64_t column_sum_blocks(int64_t rows) { return rows > kRowsPerBlock ? ceil_div(rows, rows_per_sum_block(rows)) : 0; }

cudaError_t column_sums(DType dtype, const void* values, int64_t rows, int64_t columns, int64_t stride, float* partial,
                        DType sums_dtype, void* sums, bool accumulate, cudaStream_t stream) {
  return for_dtype(dtype, [&]<typename T>() {
    return for_dtype(sums_dtype, [&]<typename U>() {
      const int64_t blocks = column_sum_blocks(rows);
      const T* from = static_cast<const T*>(values);
      U* out = static_cast<U*>(sums);
      if (blocks == 0) {
        return launch_column_sums(from, rows, columns, stride, kRowsPerBlock, out, accumulate, stream);
      }
      const cudaError_t error =
          launch_column_sums(from, rows, columns, stride, rows_per_sum_block(rows), partial, false, stream);
      if (error != cudaSuccess) return error;
      return launch_column_sums(static_cast<const float*>(partial), blocks, columns, columns, blocks, out, accumulate,
                                stream);
    });
  });
}

cudaError_t sum_chunks(const float* parts, int64_t items, int64_t chunks, int64_t columns, DType dtype, void* sums,
                       cudaStream_t stream) {
  return for_dtype(dtype, [&]<typename T>() {
    const int64_t blocks = ceil_div<int64_t>(items * columns, kThreads);
    if (!fits_grid(blocks)) return cudaErrorInvalidValue;
    return launch(sum_chunks_kernel<T>, dim3(static_cast<unsigned>(blocks)), kThreads, 0, stream, parts,
                  items * columns, chunks, columns, static_cast<T*>(sums));
  });
}

cudaError_t sum_terms(const float* terms, int64_t batch, int64_t count, double* totals, cudaStream_t stream) {
  if (!fits_grid(batch)) return cudaErrorInvalidValue;
  return launch(sum_terms_kernel, dim3(static_cast<unsigned>(batch)), kThreads, sizeof(SumShared), stream, terms, count,
                totals);
}

cudaError_t finish_mean(const double* totals, int64_t count, const MeanOver& mean, float* loss, float* scale,
                        cudaStream_t stream) {
  return launch(finish_mean_kernel, dim3(1), kThreads, sizeof(SumShared), stream, totals, count, mean, loss, scale);
}

}  // namespace losatok::cuda
