// Sums over the frames of a clip for each feature, in a fixed order: the first of two stages, shares of chunks of
// frames. What is summed is a functor's: two gradients of layer_norm_modulate, one of gated_residual.
#pragma once

#include "cuda/rows.cuh"

namespace losatok::cuda {

constexpr int kClipSumLanes = 8;  // rows that a block visits at a time
constexpr int kClipSumThreads = kClipSumLanes * kWarp;
constexpr int kClipSumColumns = 4 * kWarp;  // features of a block
constexpr int64_t kClipSumRows = 64;        // frames of a chunk, at least

// How many chunks the frames of a clip are cut into.
inline int64_t clip_sum_chunks(int64_t time) {
  return std::clamp<int64_t>(ceil_div<int64_t>(time, kClipSumRows), 1, 256);
}

struct ClipSumShared {
  float sums[kClipSumLanes][kClipSumColumns];
};

// parts[k] [clips, chunks, features] for k < kSums, each null where it is not asked for; terms(b, t, c, values) gives
// what features c .. c + 4 of a frame add to each. Block (clip * chunks + chunk, features / kClipSumColumns).
template <int kSums, typename Terms>
__global__ void __launch_bounds__(kClipSumThreads)
    clip_sums_kernel(Terms terms, int64_t time, int64_t features, int64_t chunks, float* first, float* second) {
  LOSATOK_SHARED(ClipSumShared, shared);
  const int64_t b = blockIdx.x / chunks, chunk = blockIdx.x % chunks;
  const int64_t rows = ceil_div(time, chunks), t0 = chunk * rows;
  const int64_t t1 = t0 + rows < time ? t0 + rows : time;
  const int lane = threadIdx.x % kWarp, y = threadIdx.x / kWarp;
  const int64_t c = static_cast<int64_t>(blockIdx.y) * kClipSumColumns + lane * 4;
  float sums[kSums][4] = {};
  if (c < features) {
    for (int64_t t = t0 + y; t < t1; t += kClipSumLanes) {
      float values[kSums][4];
      terms(b, t, c, values);
#pragma unroll
      for (int k = 0; k < kSums; ++k)
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[k][i] += values[k][i];
    }
  }
#pragma unroll
  for (int k = 0; k < kSums; ++k) {
    float* out = k == 0 ? first : second;
    if (out == nullptr) continue;  // for the whole grid
#pragma unroll
    for (int i = 0; i < 4; ++i) shared.sums[y][lane * 4 + i] = sums[k][i];
    __syncthreads();
    for (int i = threadIdx.x; i < kClipSumColumns; i += kClipSumThreads) {
      const int64_t column = static_cast<int64_t>(blockIdx.y) * kClipSumColumns + i;
      float total = 0.f;
#pragma unroll
      for (int row = 0; row < kClipSumLanes; ++row) total += shared.sums[row][i];
      if (column < features) out[blockIdx.x * features + column] = total;
    }
    __syncthreads();
  }
}

template <int kSums, typename Terms>
cudaError_t launch_clip_sums(const Terms& terms, const Frames& frames, int64_t features, float* first, float* second,
                             cudaStream_t stream) {
  const int64_t chunks = clip_sum_chunks(frames.time), x = frames.batch * chunks;
  const int64_t y = ceil_div<int64_t>(features, kClipSumColumns);
  if (!fits_grid(x) || y > 65535) return cudaErrorInvalidValue;
  return launch(clip_sums_kernel<kSums, Terms>, dim3(static_cast<unsigned>(x), static_cast<unsigned>(y)),
                kClipSumThreads, sizeof(ClipSumShared), stream, terms, frames.time, features, chunks, first, second);
}

}  // namespace losatok::cuda
