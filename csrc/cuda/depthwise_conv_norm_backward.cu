// The gradients of depthwise_conv_norm, in two kernels: through LayerNorm, where x is convolved anew, and through the
// convolution. What flows between them lies in memory once, in float32: a frame's neighbours need it.
#include "cuda/depthwise_conv_norm.cuh"

namespace losatok::cuda {
namespace {

constexpr int kColumnThreads = 64;
constexpr int64_t kManyFrames = 16384;

// What a frame's gradient through LayerNorm needs beside its channels.
struct Along {
  Statistics of;
  float one, normal;  // means of g and of g * normal, g the gradient by what is normal
};

template <typename Shape>
struct GradientShared {
  float rows[Shape::kFrames][Shape::kChannels];
  float sums[2][Shape::kChannels];
  Along along[Shape::kFrames];
};

// By one warp, of a row in shared memory.
template <typename T>
__device__ __forceinline__ Along along_of(const float* row, const T* grad, const void* gain, int64_t channels,
                                          float eps, bool four) {
  const Statistics of = row_statistics(row, channels, eps);
  float one = 0.f, normal = 0.f;
  for (int64_t c = threadIdx.x % kWarp * 4; c < channels; c += 4 * kWarp) {
    float g[4], factor[4];
    load_four(grad, c, channels, four, g);
    load_or<T>(gain, 1.f, c, channels, four, factor);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (c + i >= channels) continue;
      const float by_normal = g[i] * factor[i];
      one += by_normal;
      normal = fmaf(by_normal, (row[c + i] - of.mean) * of.rstd, normal);
    }
  }
  return {of, warp_sum(one) / static_cast<float>(channels), warp_sum(normal) / static_cast<float>(channels)};
}

// Which frames of which clip a block of the gradient has, clip * chunks + chunk along x: t0 .. t1, valid below `last`.
struct Chunk {
  int64_t b, t0, t1, length, last;
};

__device__ __forceinline__ Chunk chunk_of(const Frames& frames, int64_t chunks, int64_t size) {
  const int64_t b = blockIdx.x / chunks, t0 = blockIdx.x % chunks * size, length = valid_length(frames, b);
  const int64_t t1 = t0 + size < frames.time ? t0 + size : frames.time;
  return {b, t0, t1, length, t1 < length ? t1 : length};
}

// Block (clip * chunks + chunk); grad_convolved, and the chunk's sums for gain and shift.
template <typename T, typename Shape>
__global__ void __launch_bounds__(kConvThreads, kConvBlocks)
    conv_norm_gradient_kernel(const ConvNormGradient p, int64_t chunks, int64_t size, bool four) {
  LOSATOK_SHARED(GradientShared<Shape>, shared);
  const int64_t channels = p.conv.x.features;
  const Chunk own = chunk_of(p.conv.frames, chunks, size);
  for (int64_t c = threadIdx.x * 4; c < channels; c += 4 * kConvThreads) {
    const float zeros[4] = {};
    store_four(shared.sums[0], c, Shape::kChannels, true, zeros);
    store_four(shared.sums[1], c, Shape::kChannels, true, zeros);
  }
  for (int64_t first = own.t0; first < own.last; first += Shape::kFrames) {
    convolve_rows<T, Shape>(p.conv, own.b, first, own.length, four, shared.rows);
    __syncthreads();
    const int warp = threadIdx.x / kWarp;
    if (warp < Shape::kFrames && first + warp < own.last) {
      const Along along =
          along_of<T>(shared.rows[warp], clip_row<T>(p.grad, own.b, first + warp), p.gain, channels, p.eps, four);
      if (threadIdx.x % kWarp == 0) shared.along[warp] = along;
    }
    __syncthreads();
    for (int64_t c = threadIdx.x * 4; c < channels; c += 4 * kConvThreads) {
      float gain[4], gain_sum[4], shift_sum[4];
      load_or<T>(p.gain, 1.f, c, channels, four, gain);
      load_four(shared.sums[0], c, Shape::kChannels, true, gain_sum);
      load_four(shared.sums[1], c, Shape::kChannels, true, shift_sum);
#pragma unroll 1
      for (int f = 0; f < Shape::kFrames && first + f < own.last; ++f) {
        const Along along = shared.along[f];
        float x[4], g[4];
        load_four(shared.rows[f], c, Shape::kChannels, true, x);
        load_four(clip_row<T>(p.grad, own.b, first + f), c, channels, four, g);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float normal = (x[i] - along.of.mean) * along.of.rstd;
          shift_sum[i] += g[i];
          gain_sum[i] = fmaf(g[i], normal, gain_sum[i]);
          x[i] = along.of.rstd * (g[i] * gain[i] - along.one - normal * along.normal);
        }
        store_four(p.grad_convolved + (own.b * p.conv.frames.time + first + f) * channels, c, channels, four, x);
      }
      store_four(shared.sums[0], c, Shape::kChannels, true, gain_sum);
      store_four(shared.sums[1], c, Shape::kChannels, true, shift_sum);
    }
  }
  if (p.parts == nullptr) return;
  float* parts = p.parts + (blockIdx.x * (p.conv.taps + 3) + p.conv.taps + 1) * channels;
  for (int64_t c = threadIdx.x * 4; c < channels; c += 4 * kConvThreads) {  // a thread's own channels: no barrier
    float sums[4];
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      load_four(shared.sums[k], c, Shape::kChannels, true, sums);
      store_four(parts + k * channels, c, channels, four, sums);
    }
  }
}

// Block (clip * chunks + chunk, 4 * kColumnThreads channels); a thread goes along the chunk with four channels. With
// h the gradient by what is convolved: grad_x[t] = sum over j of weight[j] h[t + half - j], and weight[j] gets
// x[t] h[t + half - j] from every t.
template <typename T, int kTaps>
__global__ void __launch_bounds__(kColumnThreads)
    conv_gradient_kernel(const ConvGradient p, int64_t chunks, int64_t size, bool four) {
  const int64_t channels = p.conv.x.features, time = p.conv.frames.time, taps = kTaps > 0 ? kTaps : p.conv.taps;
  const int64_t c = (static_cast<int64_t>(blockIdx.y) * kColumnThreads + threadIdx.x) * 4, half = taps / 2;
  if (c >= channels) return;  // no barrier follows
  const Chunk own = chunk_of(p.conv.frames, chunks, size);
  const Clips by{p.grad_convolved, channels, time * channels, channels};
  T* grad_x = p.grad_x == nullptr ? nullptr : static_cast<T*>(p.grad_x) + own.b * time * channels;
  float* parts = p.parts == nullptr ? nullptr : p.parts + blockIdx.x * (taps + 3) * channels;
  float bias_sum[4] = {};
  if constexpr (kTaps > 0) {
    float weight[kTaps][4], sums[kTaps][4] = {};
    load_taps<T>(p.conv.weight, c, channels, four, weight);
    Near<float, kTaps> near(by, own.b, own.t0, own.length, c, four);
#pragma unroll 1
    for (int64_t t = own.t0; t < own.last; ++t) {
      near.go_to(by, own.b, t, own.length, c, four);
      float x[4], sum[4] = {};
      load_frame<T>(p.conv.x, own.b, t, own.length, c, four, x);
#pragma unroll
      for (int j = 0; j < kTaps; ++j) {
        add_products(weight[j], near.x[kTaps - 1 - j], sum);
        add_products(x, near.x[kTaps - 1 - j], sums[j]);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) bias_sum[i] += near.x[kTaps / 2][i];
      if (grad_x != nullptr) store_four(grad_x + t * channels, c, channels, four, sum);
    }
#pragma unroll
    for (int j = 0; j < kTaps; ++j) {
      if (parts != nullptr) store_four(parts + j * channels, c, channels, four, sums[j]);
    }
  } else {
    for (int64_t t = own.t0; t < own.last; ++t) {
      float sum[4] = {}, h[4];
      for (int64_t j = 0; j < taps; ++j) {
        float tap[4];
        load_four(static_cast<const T*>(p.conv.weight) + j * channels, c, channels, four, tap);
        load_frame<float>(by, own.b, t + half - j, own.length, c, four, h);
        add_products(tap, h, sum);
      }
      load_frame<float>(by, own.b, t, own.length, c, four, h);
#pragma unroll
      for (int i = 0; i < 4; ++i) bias_sum[i] += h[i];
      if (grad_x != nullptr) store_four(grad_x + t * channels, c, channels, four, sum);
    }
    for (int64_t j = 0; parts != nullptr && j < taps; ++j) {
      float sum[4] = {};
      for (int64_t t = own.t0; t < own.last; ++t) {
        float x[4], h[4];
        load_frame<T>(p.conv.x, own.b, t, own.length, c, four, x);
        load_frame<float>(by, own.b, t + half - j, own.length, c, four, h);
        add_products(x, h, sum);
      }
      store_four(parts + j * channels, c, channels, four, sum);
    }
  }
  if (parts != nullptr) store_four(parts + taps * channels, c, channels, four, bias_sum);
  const float zeros[4] = {};
  for (int64_t t = own.t0 > own.length ? own.t0 : own.length; grad_x != nullptr && t < own.t1; ++t) {
    store_four(grad_x + t * channels, c, channels, four, zeros);
  }
}

}  // namespace

// Few frames a chunk where there are few: to occupy the device. Many of them where the sums would be as large as x.
int64_t conv_chunk_frames(const Frames& frames) { return frames.batch * frames.time > kManyFrames ? 64 : 16; }

int64_t conv_chunks(const Frames& frames) {
  return std::max<int64_t>(1, ceil_div(frames.time, conv_chunk_frames(frames)));
}

cudaError_t conv_norm_gradient(DType dtype, const ConvNormGradient& a, cudaStream_t stream) {
  const int64_t chunks = conv_chunks(a.conv.frames), blocks = a.conv.frames.batch * chunks;
  if (!fits_grid(blocks)) return cudaErrorInvalidValue;
  return for_dtype(dtype, [&]<typename T>() {
    return for_shape(a.conv, [&]<typename Shape>() {
      const int64_t channels = a.conv.x.features;
      const bool four = conv_reads_four<T>(a.conv) && clips_read_four<T>(a.grad) &&
                        reads_four<T>(a.gain, channels, channels) && reads_four<float>(a.parts, channels, channels) &&
                        reads_four<float>(a.grad_convolved, channels, channels);
      return launch(conv_norm_gradient_kernel<T, Shape>, dim3(static_cast<unsigned>(blocks)), kConvThreads,
                    sizeof(GradientShared<Shape>), stream, a, chunks, conv_chunk_frames(a.conv.frames), four);
    });
  });
}

cudaError_t conv_gradient(DType dtype, const ConvGradient& a, cudaStream_t stream) {
  const int64_t channels = a.conv.x.features, chunks = conv_chunks(a.conv.frames), x = a.conv.frames.batch * chunks;
  const int64_t y = ceil_div<int64_t>(channels, 4 * kColumnThreads);
  if (!fits_grid(x) || y > 65535) return cudaErrorInvalidValue;
  return for_dtype(dtype, [&]<typename T>() {
    const bool four = conv_reads_four<T>(a.conv) && reads_four<T>(a.grad_x, channels, channels) &&
                      reads_four<float>(a.parts, channels, channels) &&
                      reads_four<float>(a.grad_convolved, channels, channels);
    const auto kernel = a.conv.taps == 7 ? conv_gradient_kernel<T, 7> : conv_gradient_kernel<T, 0>;
    return launch(kernel, dim3(static_cast<unsigned>(x), static_cast<unsigned>(y)), kColumnThreads, 0, stream, a,
                  chunks, conv_chunk_frames(a.conv.frames), four);
  });
}

}  // namespace losatok::cuda
