// A depthwise convolution over time, then LayerNorm, channels last, in one pass: x is read once from memory, y written
// once.
//
// A block convolves a few frames at a time. A thread goes along them with four channels of the taps' frames in
// registers: with seven taps it reads 15 rows for 8 frames. What is convolved goes to shared memory, where a warp per
// frame takes its mean and variance.
#include "cuda/depthwise_conv_norm.cuh"

namespace losatok::cuda {
namespace {

template <typename Shape>
struct ConvShared {
  float rows[Shape::kFrames][Shape::kChannels];
};

// Block (clip, group of kFrames frames).
template <typename T, typename Shape>
__global__ void __launch_bounds__(kConvThreads, kConvBlocks) conv_norm_kernel(const ConvNorm p, bool four) {
  LOSATOK_SHARED(ConvShared<Shape>, shared);
  const int64_t time = p.conv.frames.time, channels = p.conv.x.features;
  const int64_t groups = ceil_div<int64_t>(time, Shape::kFrames), b = blockIdx.x / groups;
  const int64_t first = blockIdx.x % groups * Shape::kFrames, length = valid_length(p.conv.frames, b);
  if (first < length) convolve_rows<T, Shape>(p.conv, b, first, length, four, shared.rows);
  __syncthreads();
  const int f = threadIdx.x / kWarp;
  const int64_t t = first + f;
  if (f >= Shape::kFrames || t >= time) return;  // a whole warp; no barrier follows
  T* y = static_cast<T*>(p.y) + (b * time + t) * channels;
  const bool valid = t < length;
  const Statistics of = valid ? row_statistics(shared.rows[f], channels, p.eps) : Statistics{0.f, 0.f};
  for (int64_t c = threadIdx.x % kWarp * 4; c < channels; c += 4 * kWarp) {
    float x[4] = {}, gain[4], shift[4];
    if (valid) {
      load_four(shared.rows[f], c, Shape::kChannels, true, x);
      load_or<T>(p.gain, 1.f, c, channels, four, gain);
      load_or<T>(p.shift, 0.f, c, channels, four, shift);
#pragma unroll
      for (int i = 0; i < 4; ++i) x[i] = fmaf((x[i] - of.mean) * of.rstd, gain[i], shift[i]);
    }
    store_four(y, c, channels, four, x);
  }
}

}  // namespace

cudaError_t conv_norm(DType dtype, const ConvNorm& a, cudaStream_t stream) {
  const Frames& frames = a.conv.frames;
  return for_dtype(dtype, [&]<typename T>() {
    return for_shape(a.conv, [&]<typename Shape>() {
      const int64_t channels = a.conv.x.features,
                    blocks = frames.batch * ceil_div<int64_t>(frames.time, Shape::kFrames);
      if (!fits_grid(blocks)) return cudaErrorInvalidValue;
      bool four = conv_reads_four<T>(a.conv);
      for (const void* vector : {a.gain, a.shift, static_cast<const void*>(a.y)}) {
        four = four && reads_four<T>(vector, channels, channels);
      }
      return launch(conv_norm_kernel<T, Shape>, dim3(static_cast<unsigned>(blocks)), kConvThreads,
                    sizeof(ConvShared<Shape>), stream, a, four);
    });
  });
}

}  // namespace losatok::cuda
