// Row kernels of the time-relation ops: norms, normalised copies, sums of squares, and the gradient through the norm.
#include "cuda/rows.cuh"
#include "cuda/time_relation.h"

namespace losatok::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRowsPerBlock = kThreads / kWarp;

// A warp per row of [B * T].
template <typename T>
__global__ void __launch_bounds__(kThreads)
    inverse_norms_kernel(Clips clips, Frames frames, bool four, float* inverse) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / kWarp;
  if (n >= frames.batch * frames.time) return;  // a whole warp; no barrier follows
  const int64_t b = n / frames.time, t = n % frames.time;
  const bool valid = t < valid_length(frames, b);
  const float sum = row_square_sum(clip_row<T>(clips, b, t), valid ? clips.features : 0, four);
  if (threadIdx.x % kWarp == 0) inverse[n] = valid ? inverse_norm(sum) : 0.f;
}

struct Chunk {
  int64_t b0, items, t0, count;
};

// A warp per row of [items * count].
template <typename T>
__global__ void __launch_bounds__(kThreads)
    normalize_clips_kernel(Clips clips, Frames frames, Chunk chunk, bool four, bool four_out, float* rows) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / kWarp;
  if (n >= chunk.items * chunk.count) return;  // a whole warp; no barrier follows
  const int64_t b = chunk.b0 + n / chunk.count, t = chunk.t0 + n % chunk.count;
  const bool valid = t < valid_length(frames, b);
  const T* row = clip_row<T>(clips, b, t);
  const float inverse = inverse_norm(row_square_sum(row, valid ? clips.features : 0, four));
  for (int64_t c = threadIdx.x % kWarp * 4; c < clips.features; c += 4 * kWarp) {
    float x[4] = {0.f, 0.f, 0.f, 0.f};
    if (valid) load_four(row, c, clips.features, four, x);
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] *= inverse;
    store_four(rows + n * clips.features, c, clips.features, four_out, x);
  }
}

struct SquareShared {
  double sums[kRowsPerBlock];
};

__global__ void __launch_bounds__(kThreads)
    add_square_sums_kernel(const float* matrices, int64_t count, double factor, bool first, double* totals) {
  LOSATOK_SHARED(SquareShared, shared);
  const float* own = matrices + blockIdx.x * count;
  double sum = 0.;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += static_cast<double>(own[i]) * own[i];
  sum = block_sum<kThreads>(sum, shared.sums);
  if (threadIdx.x == 0) totals[blockIdx.x] = (first ? 0. : totals[blockIdx.x]) + factor * sum;
}

// A warp per row of [B * T].
template <typename T>
__global__ void __launch_bounds__(kThreads)
    normalize_backward_kernel(Clips low, Frames frames, const float* scale, bool four, bool four_grad, float* grad) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / kWarp;
  if (n >= frames.batch * frames.time) return;  // a whole warp; no barrier follows
  const int64_t b = n / frames.time, t = n % frames.time;
  const bool valid = t < valid_length(frames, b);
  const int64_t features = valid ? low.features : 0;
  const T* row = clip_row<T>(low, b, t);
  float* own = grad + n * low.features;
  const float square_sum = row_square_sum(row, features, four);
  const float inverse = inverse_norm(square_sum);
  float along = 0.f;
  for (int64_t c = threadIdx.x % kWarp * 4; c < features; c += 4 * kWarp) {
    float x[4], g[4];
    load_four(row, c, features, four, x);
    load_four(static_cast<const float*>(own), c, features, four_grad, g);
#pragma unroll
    for (int i = 0; i < 4; ++i) along = fmaf(x[i] * inverse, g[i], along);
  }
  along = warp_sum(along);
  // Below the bound on the norm, normalize is a multiplication, whose gradient has no part along the row to take out.
  if (sqrtf(square_sum) <= kNormEps) along = 0.f;
  const float factor = *scale * inverse;
  for (int64_t c = threadIdx.x % kWarp * 4; c < low.features; c += 4 * kWarp) {
    float g[4] = {0.f, 0.f, 0.f, 0.f};
    if (valid) {
      float x[4];
      load_four(row, c, features, four, x);
      load_four(static_cast<const float*>(own), c, features, four_grad, g);
#pragma unroll
      for (int i = 0; i < 4; ++i) g[i] = factor * (g[i] - x[i] * inverse * along);
    }
    store_four(own, c, low.features, four_grad, g);
  }
}

}  // namespace

cudaError_t inverse_norms(DType dtype, const Clips& clips, const Frames& frames, float* inverse, cudaStream_t stream) {
  return for_dtype(dtype, [&]<typename T>() {
    dim3 grid;
    if (!row_grid<kRowsPerBlock>(frames.batch * frames.time, &grid)) return cudaErrorInvalidValue;
    return launch(inverse_norms_kernel<T>, grid, kThreads, 0, stream, clips, frames, clips_read_four<T>(clips),
                  inverse);
  });
}

cudaError_t normalize_clips(DType dtype, const Clips& clips, const Frames& frames, int64_t b0, int64_t items,
                            int64_t t0, int64_t count, float* rows, cudaStream_t stream) {
  return for_dtype(dtype, [&]<typename T>() {
    dim3 grid;
    if (!row_grid<kRowsPerBlock>(items * count, &grid)) return cudaErrorInvalidValue;
    const bool four_out = reads_four<float>(rows, clips.features, clips.features);
    return launch(normalize_clips_kernel<T>, grid, kThreads, 0, stream, clips, frames, Chunk{b0, items, t0, count},
                  clips_read_four<T>(clips), four_out, rows);
  });
}

cudaError_t add_square_sums(const float* matrices, int64_t items, int64_t count, double factor, bool first,
                            double* totals, cudaStream_t stream) {
  if (!fits_grid(items)) return cudaErrorInvalidValue;
  return launch(add_square_sums_kernel, dim3(static_cast<unsigned>(items)), kThreads, sizeof(SquareShared), stream,
                matrices, count, factor, first, totals);
}

cudaError_t normalize_backward(DType dtype, const Clips& low, const Frames& frames, const float* scale, float* grad,
                               cudaStream_t stream) {
  return for_dtype(dtype, [&]<typename T>() {
    dim3 grid;
    if (!row_grid<kRowsPerBlock>(frames.batch * frames.time, &grid)) return cudaErrorInvalidValue;
    const bool four_grad = reads_four<float>(grad, low.features, low.features);
    return launch(normalize_backward_kernel<T>, grid, kThreads, 0, stream, low, frames, scale, clips_read_four<T>(low),
                  four_grad, grad);
  });
}

}  // namespace losatok::cuda
