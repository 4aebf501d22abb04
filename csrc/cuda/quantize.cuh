// What the codebook kernels share: rows of any type, reductions of a warp, and the one way to compute a distance.
#pragma once

#include <limits>

#include "cuda/device.cuh"
#include "cuda/quantize.h"

namespace losatok::cuda {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kLargest = std::numeric_limits<float>::max();

template <typename T>
__device__ __forceinline__ T warp_max(T x) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const T other = __shfl_xor_sync(kFullMask, x, offset);
    x = other > x ? other : x;
  }
  return x;
}

template <typename T>
__device__ __forceinline__ T warp_min(T x) {
  return -warp_max(-x);
}

// Element `column` of row n of [B * T].
__device__ __forceinline__ float row_value(const CodedRows& rows, int64_t n, int64_t column) {
  const int64_t time = rows.frames.time;
  const int64_t at = n / time * rows.batch_stride + n % time * rows.row_stride + column;
  switch (rows.dtype) {
    case DType::kBFloat16:
      return to_float(static_cast<const BFloat16*>(rows.data)[at]);
    case DType::kHalf:
      return to_float(static_cast<const Half*>(rows.data)[at]);
    default:
      return static_cast<const float*>(rows.data)[at];
  }
}

// The squared distances of a row, in shared memory, to kCodes codes, by one warp and by differences; valid in every
// lane. The only place where a distance is computed, so that a pair of row and code has one, however it was found.
template <int kCodes>
__device__ __forceinline__ void distances_to(const float* row, const float* codes, int64_t step, int64_t features,
                                             float (&out)[kCodes]) {
#pragma unroll
  for (int c = 0; c < kCodes; ++c) out[c] = 0.f;
  for (int64_t j = threadIdx.x % kWarp; j < features; j += kWarp) {
    const float x = row[j];
#pragma unroll
    for (int c = 0; c < kCodes; ++c) {
      const float difference = x - codes[c * step + j];
      out[c] = fmaf(difference, difference, out[c]);
    }
  }
#pragma unroll
  for (int c = 0; c < kCodes; ++c) out[c] = warp_sum(out[c]);
}

// The nearest code so far, the same in every lane of a warp; the lowest of those as near. NaN and infinity never enter.
struct Nearest {
  float distance = kInfinity;
  int64_t code = -1;

  __device__ __forceinline__ void offer(float d, int64_t k) {
    if (d < distance || (d == distance && k < code)) {
      distance = d;
      code = k;
    }
  }

  // Codes first, first + step, ... below last.
  __device__ __forceinline__ void offer_all(const float* row, const float* codes, int64_t first, int64_t step,
                                            int64_t last, int64_t features) {
    constexpr int kAtOnce = 4;
    int64_t k = first;
    for (; k + (kAtOnce - 1) * step < last; k += kAtOnce * step) {
      float found[kAtOnce];
      distances_to<kAtOnce>(row, codes + k * features, step * features, features, found);
#pragma unroll
      for (int c = 0; c < kAtOnce; ++c) offer(found[c], k + c * step);
    }
    for (; k < last; k += step) {
      float found[1];
      distances_to<1>(row, codes + k * features, 0, features, found);
      offer(found[0], k);
    }
  }

  // Where nothing was at a finite distance: code 0, however far.
  __device__ __forceinline__ void settle(const float* row, const float* codes, int64_t features) {
    if (code >= 0) return;
    float found[1];
    distances_to<1>(row, codes, 0, features, found);
    code = 0;
    distance = found[0];
  }
};

}  // namespace losatok::cuda
