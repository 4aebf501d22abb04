// The inverse STFT from log magnitudes and phases, around the transforms of cuFFT: a warp per frame. Sums over frames
// are gathered by the sample that they meet in, in a fixed order.
//
// Why cuFFT stays in the middle. At n = 1280, hop 320, a frame moves 4 n bytes of float32 for each of: reading the
// head, writing the spectrum, cuFFT's own copy of it (read and written), its transform (read and written), reading the
// frames once for the overlap-add; and n bytes of audio: 7.25 * 4 n = 37 KB, 8.7 ns at the 4.3 TB/s of an H200. The
// transform as a matrix product instead would save four of the seven at best and cost 2 n (n + 2) = 3.3 MFLOP, 49 ns in
// float32 at 67 TFLOP/s; on the matrix units, in less precision than the waveform has. Windowing, overlap-add, the
// envelope, trimming and 1 / n cost no traffic of their own: the window is read from the cache for the product, and its
// squares with it.
#include "cuda/polar_istft.h"
#include "cuda/rows.cuh"

namespace losatok::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRowsPerBlock = kThreads / kWarp;
constexpr float kLogMaxMagnitude = 4.6051701859880914f;  // log 100
constexpr float kLeastEnvelope = 1e-11f;

// The frame of a warp: its number within the range, its clip and its place there; valid within the clip's length.
struct FramePlace {
  int64_t row, b, t, length;
  __device__ bool valid() const { return t < length; }
};

__device__ __forceinline__ FramePlace frame_place(const FrameRange& range) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / kWarp, n = range.first + row;
  if (row >= range.rows) return {row, 0, 0, 0};
  return {row, n / range.frames.time, n % range.frames.time, valid_length(range.frames, n / range.frames.time)};
}

struct Polar {
  float size, cosine, sine;
};

__device__ __forceinline__ Polar polar_of(float log_magnitude, float phase) {
  Polar value;
  value.size = expf(log_magnitude > kLogMaxMagnitude ? kLogMaxMagnitude : log_magnitude);  // NaN stays NaN
  sincosf(phase, &value.sine, &value.cosine);
  return value;
}

template <typename T>
__global__ void __launch_bounds__(kThreads) polar_spectrum_kernel(const PolarSpectrum p) {
  const FramePlace at = frame_place(p.range);
  if (at.row >= p.range.rows) return;  // a whole warp; no barrier follows
  const int64_t bins = p.head.features / 2;
  const T* head = clip_row<T>(p.head, at.b, at.t);
  float2* spectrum = reinterpret_cast<float2*>(p.spectrum) + at.row * bins;
  for (int64_t k = threadIdx.x % kWarp; k < bins; k += kWarp) {
    float2 value = {0.f, 0.f};
    if (at.valid()) {
      const Polar polar = polar_of(to_float(head[k]), to_float(head[bins + k]));
      const bool end = k == 0 || k == bins - 1;  // real by definition: what a library makes of the rest is its own
      value = {polar.size * polar.cosine, end ? 0.f : polar.size * polar.sine};
    }
    spectrum[k] = value;
  }
}

// The sample `from_trim` samples after the trimmed start of a frame t: the last frame that it meets, and where in it.
struct Meeting {
  int64_t last;
  int within;
};

__device__ __forceinline__ Meeting meeting(const Overlap& o, int64_t t, int from_trim) {
  return {t + from_trim / o.hop, from_trim % o.hop};
}

// each(f, position in frame f, window there) for the frames of a clip that meet, in a fixed order; returns the sum of
// the squares of the window.
template <typename Each>
__device__ __forceinline__ float for_meeting(const Overlap& o, const Meeting& at, int64_t length, Each&& each) {
  float envelope = 0.f;
  for (int position = at.within; position < o.size; position += o.hop) {
    const int64_t f = at.last - position / o.hop;
    if (f < 0 || f >= length) continue;
    const float w = o.window[position];
    envelope = fmaf(w, w, envelope);
    each(f, position, w);
  }
  return envelope;
}

template <typename T>
__global__ void __launch_bounds__(kThreads) overlap_frames_kernel(const OverlapFrames p) {
  const FramePlace at = frame_place(p.range);
  if (at.row >= p.range.rows) return;  // a whole warp; no barrier follows
  const Overlap& o = p.overlap;
  const float* waves = p.waves + (at.b * p.range.frames.time - p.first_wave) * o.size;  // frame 0 of the clip
  T* audio = static_cast<T*>(p.audio) + (p.range.first + at.row) * o.hop;
  const float share = 1.f / static_cast<float>(o.size);
  for (int i = threadIdx.x % kWarp; i < o.hop; i += kWarp) {
    float sum = 0.f, envelope = 0.f;
    if (at.valid()) {
      envelope =
          for_meeting(o, meeting(o, at.t, (o.size - o.hop) / 2 + i), at.length,
                      [&](int64_t f, int position, float w) { sum = fmaf(waves[f * o.size + position], w, sum); });
    }
    audio[i] = from_float<T>(envelope > kLeastEnvelope ? sum * share / envelope : 0.f);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) cut_frames_kernel(const CutFrames p) {
  const FramePlace at = frame_place(p.range);
  if (at.row >= p.range.rows) return;  // a whole warp; no barrier follows
  const Overlap& o = p.overlap;
  const int trim = (o.size - o.hop) / 2;
  const int64_t samples = at.length * o.hop;
  const T* grad = static_cast<const T*>(p.grad) + at.b * p.range.frames.time * o.hop;
  float* waves = p.waves + at.row * o.size;
  for (int i = threadIdx.x % kWarp; i < o.size; i += kWarp) {
    const int64_t s = at.t * o.hop + i - trim;
    float value = 0.f;
    if (at.valid() && s >= 0 && s < samples) {
      const float envelope = for_meeting(o, meeting(o, at.t, i), at.length, [](int64_t, int, float) {});
      if (envelope > kLeastEnvelope) value = to_float(grad[s]) * o.window[i] / envelope;
    }
    waves[i] = value;
  }
}

// The frames are (Re S_0 + (-1)^j Re S_last + 2 sum of (Re S_k cos - Im S_k sin)(2 pi j k / n)) / n: the gradient by
// S_k is 2 / n times the transform of theirs, real to real, imaginary to imaginary; 1 / n times its real part at both
// ends.
template <typename T>
__global__ void __launch_bounds__(kThreads) polar_gradient_kernel(const PolarGradient p) {
  const FramePlace at = frame_place(p.range);
  if (at.row >= p.range.rows) return;  // a whole warp; no barrier follows
  const int64_t bins = p.head.features / 2;
  const float inner = 1.f / static_cast<float>(bins - 1);
  const T* head = clip_row<T>(p.head, at.b, at.t);
  T* grad = static_cast<T*>(p.grad_head) + (p.range.first + at.row) * p.head.features;
  const float2* transformed = reinterpret_cast<const float2*>(p.transformed) + at.row * bins;
  for (int64_t k = threadIdx.x % kWarp; k < bins; k += kWarp) {
    float by_magnitude = 0.f, by_phase = 0.f;
    if (at.valid()) {
      const float log_magnitude = to_float(head[k]);
      const Polar polar = polar_of(log_magnitude, to_float(head[bins + k]));
      const bool end = k == 0 || k == bins - 1;
      const float size = polar.size * (end ? 0.5f * inner : inner);
      const float real = transformed[k].x, imaginary = end ? 0.f : transformed[k].y;
      if (!(log_magnitude > kLogMaxMagnitude)) by_magnitude = size * (polar.cosine * real + polar.sine * imaginary);
      by_phase = size * (polar.cosine * imaginary - polar.sine * real);
    }
    grad[k] = from_float<T>(by_magnitude);
    grad[bins + k] = from_float<T>(by_phase);
  }
}

// A warp for each frame of the range.
template <typename Arguments>
cudaError_t launch_frames(void (*kernel)(Arguments), const Arguments& arguments, cudaStream_t stream) {
  dim3 grid;
  if (!row_grid<kRowsPerBlock>(arguments.range.rows, &grid)) return cudaErrorInvalidValue;
  return launch(kernel, grid, kThreads, 0, stream, arguments);
}

}  // namespace

cudaError_t polar_spectrum(DType dtype, const PolarSpectrum& a, cudaStream_t stream) {
  return for_dtype(dtype, [&]<typename T>() { return launch_frames(polar_spectrum_kernel<T>, a, stream); });
}

cudaError_t overlap_frames(DType dtype, const OverlapFrames& a, cudaStream_t stream) {
  return for_dtype(dtype, [&]<typename T>() { return launch_frames(overlap_frames_kernel<T>, a, stream); });
}

cudaError_t cut_frames(DType dtype, const CutFrames& a, cudaStream_t stream) {
  return for_dtype(dtype, [&]<typename T>() { return launch_frames(cut_frames_kernel<T>, a, stream); });
}

cudaError_t polar_gradient(DType dtype, const PolarGradient& a, cudaStream_t stream) {
  return for_dtype(dtype, [&]<typename T>() { return launch_frames(polar_gradient_kernel<T>, a, stream); });
}

}  // namespace losatok::cuda
