// What both directions of depthwise_conv_norm share: frames convolved into shared memory, and what LayerNorm needs of
// them.
#pragma once

#include "cuda/depthwise_conv_norm.h"
#include "cuda/rows.cuh"

namespace losatok::cuda {

constexpr int kConvThreads = 256;
constexpr int kConvWarps = kConvThreads / kWarp;
constexpr int kConvBlocks = 2;  // on a multiprocessor at least

// What a kernel is compiled for: taps (0: any, known at run time), frames at a time, and channels that fit.
template <int kTaps_, int kFrames_, int kChannels_>
struct ConvShape {
  static constexpr int kTaps = kTaps_, kFrames = kFrames_, kChannels = kChannels_;
  static_assert(kFrames <= kConvWarps);
};

// vector[c .. c + 4], or a constant where there is none.
template <typename T>
__device__ __forceinline__ void load_or(const void* vector, float otherwise, int64_t c, int64_t channels, bool four,
                                        float (&out)[4]) {
  if (vector != nullptr) {
    load_four(static_cast<const T*>(vector), c, channels, four, out);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = otherwise;
  }
}

template <typename T>
__device__ __forceinline__ void load_frame(const Clips& x, int64_t b, int64_t t, int64_t length, int64_t c, bool four,
                                           float (&out)[4]) {
  if (t >= 0 && t < length) {
    load_four(clip_row<T>(x, b, t), c, x.features, four, out);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = 0.f;
  }
}

__device__ __forceinline__ void add_products(const float (&a)[4], const float (&b)[4], float (&sums)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) sums[i] = fmaf(a[i], b[i], sums[i]);
}

// Four channels of kTaps frames next to each other, going along time: what lies before and past a clip is zero.
template <typename T, int kTaps>
struct Near {
  float x[kTaps][4], next[4];

  // All but the last of the frames about `first`, and the last as the next.
  __device__ __forceinline__ Near(const Clips& clips, int64_t b, int64_t first, int64_t length, int64_t c, bool four) {
#pragma unroll
    for (int j = 1; j < kTaps; ++j) {
      load_frame<T>(clips, b, first - kTaps / 2 - 1 + j, length, c, four, x[j]);
    }
    load_frame<T>(clips, b, first + kTaps / 2, length, c, four, next);
  }

  // To the frames about t; what comes after them is asked for while they are worked on.
  __device__ __forceinline__ void go_to(const Clips& clips, int64_t b, int64_t t, int64_t length, int64_t c,
                                        bool four) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j + 1 < kTaps; ++j) x[j][i] = x[j + 1][i];
      x[kTaps - 1][i] = next[i];
    }
    load_frame<T>(clips, b, t + 1 + kTaps / 2, length, c, four, next);
  }
};

template <typename T, int kTaps>
__device__ __forceinline__ void load_taps(const void* weight, int64_t c, int64_t channels, bool four,
                                          float (&taps)[kTaps][4]) {
#pragma unroll
  for (int j = 0; j < kTaps; ++j) {
    load_four(static_cast<const T*>(weight) + j * channels, c, channels, four, taps[j]);
  }
}

// Frames first .. first + kFrames of clip b convolved, into shared rows. A thread has the same channels each time.
template <typename T, typename Shape>
__device__ __forceinline__ void convolve_rows(const DepthwiseConv& p, int64_t b, int64_t first, int64_t length,
                                              bool four, float (&rows)[Shape::kFrames][Shape::kChannels]) {
  constexpr int kTaps = Shape::kTaps;
  const int64_t channels = p.x.features;
  for (int64_t c = threadIdx.x * 4; c < channels; c += 4 * kConvThreads) {
    float bias[4];
    load_or<T>(p.bias, 0.f, c, channels, four, bias);
    if constexpr (kTaps > 0) {
      float taps[kTaps][4];
      load_taps<T>(p.weight, c, channels, four, taps);
      Near<T, kTaps> near(p.x, b, first, length, c, four);
#pragma unroll 1
      for (int f = 0; f < Shape::kFrames; ++f) {
        near.go_to(p.x, b, first + f, length, c, four);
        float sum[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[i] = bias[i];
#pragma unroll
        for (int j = 0; j < kTaps; ++j) add_products(taps[j], near.x[j], sum);
        store_four(rows[f], c, Shape::kChannels, true, sum);
      }
    } else {
      float sums[Shape::kFrames][4];
#pragma unroll
      for (int f = 0; f < Shape::kFrames; ++f)
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[f][i] = bias[i];
#pragma unroll 1
      for (int64_t j = 0; j < p.taps; ++j) {
        float tap[4];
        load_four(static_cast<const T*>(p.weight) + j * channels, c, channels, four, tap);
#pragma unroll
        for (int f = 0; f < Shape::kFrames; ++f) {
          float x[4];
          load_frame<T>(p.x, b, first + f + j - p.taps / 2, length, c, four, x);
          add_products(tap, x, sums[f]);
        }
      }
#pragma unroll
      for (int f = 0; f < Shape::kFrames; ++f) store_four(rows[f], c, Shape::kChannels, true, sums[f]);
    }
  }
}

struct Statistics {
  float mean, rstd;
};

// Of a row in shared memory, by one warp; valid in every lane.
__device__ __forceinline__ Statistics row_statistics(const float* row, int64_t channels, float eps) {
  const float share = 1.f / static_cast<float>(channels);
  float sum = 0.f, rest = 0.f, square_sum = 0.f;
  for (int64_t c = threadIdx.x % kWarp; c < channels; c += kWarp) sum += row[c];
  const float mean = warp_sum(sum) * share;
  for (int64_t c = threadIdx.x % kWarp; c < channels; c += kWarp) {
    const float centred = row[c] - mean;
    rest += centred;
    square_sum = fmaf(centred, centred, square_sum);
  }
  rest = warp_sum(rest) * share;  // what rounding left of the mean, large where the mean is
  const float variance = fmaxf(warp_sum(square_sum) * share - rest * rest, 0.f);
  return {mean + rest, 1.f / sqrtf(variance + eps)};
}

// Calls body.template operator()<Shape>() for what fits: one table for both launchers.
template <typename Body>
cudaError_t for_shape(const DepthwiseConv& conv, Body&& body) {
  if (conv.x.features > kMaxConvChannels) return cudaErrorInvalidValue;
  if (conv.x.features > 1280) return body.template operator()<ConvShape<0, 4, kMaxConvChannels>>();
  if (conv.taps == 7) return body.template operator()<ConvShape<7, 8, 1280>>();
  return body.template operator()<ConvShape<0, 8, 1280>>();
}

template <typename T>
bool conv_reads_four(const DepthwiseConv& conv) {
  const int64_t channels = conv.x.features;
  return clips_read_four<T>(conv.x) && reads_four<T>(conv.weight, channels, channels) &&
         reads_four<T>(conv.bias, channels, channels);
}

}  // namespace losatok::cuda
