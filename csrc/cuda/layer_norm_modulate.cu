// LayerNorm with a modulation, and its gradients: a warp per row; sums over the frames of a clip in two stages.
#include "cuda/clip_sums.cuh"
#include "cuda/layer_norm_modulate.h"

namespace losatok::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRowsPerBlock = kThreads / kWarp;

// A warp per row of [B * T]. Every pass after the first reads the row from the cache.
template <typename T>
__global__ void __launch_bounds__(kThreads) layer_norm_modulate_kernel(const LayerNormModulate p, bool four) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / kWarp;
  if (n >= p.batch * p.time) return;  // a whole warp; no barrier follows
  const int64_t b = n / p.time, t = n % p.time, columns = p.x.features;
  const T* row = clip_row<T>(p.x, b, t);
  const T* shift = clip_row<T>(p.shift, b, t);
  const T* scale = clip_row<T>(p.scale, b, t);
  const float share = 1.f / static_cast<float>(columns);
  float sum = 0.f;
  for (int64_t c = threadIdx.x % kWarp * 4; c < columns; c += 4 * kWarp) {
    float x[4];
    load_four(row, c, columns, four, x);
    sum += (x[0] + x[1]) + (x[2] + x[3]);
  }
  float mean = warp_sum(sum) * share;
  float rest = 0.f, square_sum = 0.f;
  for (int64_t c = threadIdx.x % kWarp * 4; c < columns; c += 4 * kWarp) {
    float x[4];
    load_four(row, c, columns, four, x);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float centred = c + i < columns ? x[i] - mean : 0.f;
      rest += centred;
      square_sum = fmaf(centred, centred, square_sum);
    }
  }
  rest = warp_sum(rest) * share;  // what rounding left of the mean, large where the mean is
  const float variance = fmaxf(warp_sum(square_sum) * share - rest * rest, 0.f);
  const float rstd = 1.f / sqrtf(variance + p.eps);
  mean += rest;
  if (threadIdx.x % kWarp == 0) {
    p.mean[n] = mean;
    p.rstd[n] = rstd;
  }
  for (int64_t c = threadIdx.x % kWarp * 4; c < columns; c += 4 * kWarp) {
    float x[4], offset[4], factor[4];
    load_four(row, c, columns, four, x);
    load_four(shift, c, columns, four, offset);
    load_four(scale, c, columns, four, factor);
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = fmaf((x[i] - mean) * rstd, 1.f + factor[i], offset[i]);
    store_four(static_cast<T*>(p.y) + n * columns, c, columns, four, x);
  }
}

// A warp per row of [B * T]: grad_x, and the gradients of what is per frame.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    layer_norm_modulate_backward_kernel(const LayerNormModulateBackward p, bool four) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / kWarp;
  if (n >= p.batch * p.time) return;  // a whole warp; no barrier follows
  const int64_t b = n / p.time, t = n % p.time, columns = p.x.features;
  const T* row = clip_row<T>(p.x, b, t);
  const T* grad = clip_row<T>(p.grad, b, t);
  const T* scale = clip_row<T>(p.scale, b, t);
  const float mean = p.mean[n], rstd = p.rstd[n];
  float along_one = 0.f, along_normal = 0.f;
  for (int64_t c = threadIdx.x % kWarp * 4; c < columns; c += 4 * kWarp) {
    float x[4], g[4], factor[4], product[4];
    load_four(row, c, columns, four, x);
    load_four(grad, c, columns, four, g);
    load_four(scale, c, columns, four, factor);
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // past the row's end g is 0, and so is what it adds
      const float normal = (x[i] - mean) * rstd, by_normal = g[i] * (1.f + factor[i]);
      along_one += by_normal;
      along_normal = fmaf(by_normal, normal, along_normal);
      product[i] = g[i] * normal;
    }
    if (p.grad_shift != nullptr) store_four(static_cast<T*>(p.grad_shift) + n * columns, c, columns, four, g);
    if (p.grad_scale != nullptr) store_four(static_cast<T*>(p.grad_scale) + n * columns, c, columns, four, product);
  }
  along_one = warp_sum(along_one) / static_cast<float>(columns);
  along_normal = warp_sum(along_normal) / static_cast<float>(columns);
  for (int64_t c = threadIdx.x % kWarp * 4; c < columns; c += 4 * kWarp) {
    float x[4], g[4], factor[4];
    load_four(row, c, columns, four, x);
    load_four(grad, c, columns, four, g);
    load_four(scale, c, columns, four, factor);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float normal = (x[i] - mean) * rstd;
      x[i] = rstd * (g[i] * (1.f + factor[i]) - along_one - normal * along_normal);
    }
    store_four(static_cast<T*>(p.grad_x) + n * columns, c, columns, four, x);
  }
}

// What a frame adds to the gradients of its clip's shift and scale.
template <typename T>
struct ModulationTerms {
  Clips grad, x;
  const float* mean;
  const float* rstd;
  int64_t time;
  bool four;

  __device__ __forceinline__ void operator()(int64_t b, int64_t t, int64_t c, float (&values)[2][4]) const {
    const float average = mean[b * time + t], inverse = rstd[b * time + t];
    float row[4];
    load_four(clip_row<T>(grad, b, t), c, x.features, four, values[0]);
    load_four(clip_row<T>(x, b, t), c, x.features, four, row);
#pragma unroll
    for (int i = 0; i < 4; ++i) values[1][i] = values[0][i] * (row[i] - average) * inverse;
  }
};

}  // namespace

int64_t modulation_chunks(int64_t time) { return clip_sum_chunks(time); }

cudaError_t layer_norm_modulate(DType dtype, const LayerNormModulate& a, cudaStream_t stream) {
  return for_dtype(dtype, [&]<typename T>() {
    dim3 grid;
    if (!row_grid<kRowsPerBlock>(a.batch * a.time, &grid)) return cudaErrorInvalidValue;
    const bool four = clips_read_four<T>(a.x) && clips_read_four<T>(a.shift) && clips_read_four<T>(a.scale) &&
                      reads_four<T>(a.y, a.x.features, a.x.features);
    return launch(layer_norm_modulate_kernel<T>, grid, kThreads, 0, stream, a, four);
  });
}

cudaError_t layer_norm_modulate_backward(DType dtype, const LayerNormModulateBackward& a, cudaStream_t stream) {
  return for_dtype(dtype, [&]<typename T>() {
    dim3 grid;
    if (!row_grid<kRowsPerBlock>(a.batch * a.time, &grid)) return cudaErrorInvalidValue;
    bool four = clips_read_four<T>(a.grad) && clips_read_four<T>(a.x);
    if (a.shift_parts != nullptr || a.scale_parts != nullptr) {
      const ModulationTerms<T> terms{a.grad, a.x, a.mean, a.rstd, a.time, four};
      const Frames frames{nullptr, a.batch, a.time};
      const cudaError_t error = launch_clip_sums<2>(terms, frames, a.x.features, a.shift_parts, a.scale_parts, stream);
      if (error != cudaSuccess) return error;
    }
    four = four && clips_read_four<T>(a.scale);
    for (const void* out : {a.grad_x, a.grad_shift, a.grad_scale}) {
      four = four && reads_four<T>(out, a.x.features, a.x.features);
    }
    return launch(layer_norm_modulate_backward_kernel<T>, grid, kThreads, 0, stream, a, four);
  });
}

}  // namespace losatok::cuda
