// The vocoder ops on CUDA tensors.
#include <ATen/ops/fft_irfft.h>
#include <ATen/ops/fft_rfft.h>
#include <torch/library.h>

#include <tuple>

#include "checks/vocoder.h"
#include "cuda/bindings.h"
#include "cuda/depthwise_conv_norm.h"
#include "cuda/polar_istft.h"

namespace losatok::cuda {
namespace {

using at::Tensor;
using std::optional;

// What a call of polar_istft has, once checked, in the form that launchers take; keeps alive what they point to.
class Inverse {
 public:
  Inverse(const Tensor& head_any, const Tensor& window_any, int64_t hop, const optional<Tensor>& lengths)
      : dtype(dtype_of("head", head_any)),
        head(packed_features(head_any)),
        window_(window_any.to(at::kFloat).contiguous()),
        lengths_(contiguous(lengths)),
        frames(make_frames(lengths_, head.size(0), head.size(1))),
        size(window_.size(0)),
        bins(size / 2 + 1) {
    dtype_of("window", window_any);
    TORCH_CHECK_VALUE(size < int64_t{1} << 30, "the CUDA kernels take windows of fewer than 2^30 samples, got ", size);
    overlap = {static_cast<const float*>(data(window_)), static_cast<int>(size), static_cast<int>(hop)};
  }

  // work(first, count) on frames first .. first + count of all clips, a workspace of spectra at a time.
  template <typename Work>
  void in_chunks(Work&& work) const {
    const int64_t rows = head.size(0) * head.size(1), step = rows_per_chunk(8 * bins);
    for (int64_t first = 0; first < rows; first += step) work(first, std::min(step, rows - first));
  }

  const DType dtype;
  const Tensor head;

 private:
  const Tensor window_;
  const optional<Tensor> lengths_;

 public:
  const Frames frames;  // after the lengths that it points to
  const int64_t size, bins;
  Overlap overlap;
};

Tensor polar_istft_op(const Tensor& head, const Tensor& window, int64_t hop, const optional<Tensor>& lengths) {
  check::polar_istft_forward(head, window, hop, lengths);
  const c10::cuda::CUDAGuard guard(head.device());
  const Inverse op(head, window, hop, lengths);
  const at::ScalarType type = c10::promoteTypes(head.scalar_type(), window.scalar_type());
  const Tensor audio = empty_float(head, {head.size(0), head.size(1) * hop}, type);
  // The samples of frame t meet frames t - before .. t + after.
  const int64_t rows = head.size(0) * head.size(1), trim = (op.size - hop) / 2;
  const int64_t before = op.size / hop - 1 - trim / hop, after = (hop - 1 + trim) / hop;
  op.in_chunks([&](int64_t first, int64_t count) {
    const int64_t from = std::max<int64_t>(0, first - before), to = std::min(rows, first + count + after);
    const Tensor spectrum = empty_float(head, {to - from, op.bins}, at::kComplexFloat);
    const PolarSpectrum polar{make_clips(op.head), static_cast<float*>(data(spectrum)), {op.frames, from, to - from}};
    check(polar_spectrum(op.dtype, polar, stream()));
    const Tensor waves = at::fft_irfft(spectrum, op.size, -1, "forward").contiguous();  // "forward": it divides nothing
    const OverlapFrames sum{
        static_cast<const float*>(data(waves)), from, op.overlap, data(audio), {op.frames, first, count}};
    check(overlap_frames(dtype_of("waveform", audio), sum, stream()));
  });
  return audio;
}

Tensor polar_istft_backward_op(const Tensor& grad_any, const Tensor& head, const Tensor& window, int64_t hop,
                               const optional<Tensor>& lengths) {
  check::polar_istft_backward(grad_any, head, window, hop, lengths);
  const c10::cuda::CUDAGuard guard(head.device());
  const Inverse op(head, window, hop, lengths);
  const DType grad_dtype = dtype_of("grad", grad_any);
  const Tensor grad = grad_any.contiguous();
  const Tensor grad_head = empty_float(head, head.sizes(), head.scalar_type());
  op.in_chunks([&](int64_t first, int64_t count) {
    const FrameRange range{op.frames, first, count};
    const Tensor waves = empty_float(head, {count, op.size});
    check(cut_frames(grad_dtype, {data(grad), op.overlap, static_cast<float*>(data(waves)), range}, stream()));
    const Tensor transformed = at::fft_rfft(waves, op.size).contiguous();
    const PolarGradient polar{make_clips(op.head), static_cast<const float*>(data(transformed)), data(grad_head),
                              range};
    check(polar_gradient(op.dtype, polar, stream()));
  });
  return grad_head;
}

// --- depthwise_conv_norm --------------------------------------------------------------------------------------------

// The convolution, once checked, in the form that launchers take; keeps alive what they point to.
class Convolution {
 public:
  Convolution(const Tensor& x_any, const Tensor& weight_any, const optional<Tensor>& bias_any,
              const optional<Tensor>& gain_any, const optional<Tensor>& lengths)
      : dtype(dtype_of("x", x_any)),
        x(packed_features(x_any)),
        gain(contiguous(gain_any)),
        weight_(weight_any.squeeze(1).t().contiguous()),
        bias_(contiguous(bias_any)),
        lengths_(contiguous(lengths)) {
    TORCH_CHECK_VALUE(x.size(2) <= kMaxConvChannels, "the CUDA kernels take up to ", kMaxConvChannels,
                      " channels, got ", x.size(2), " (x's last size); use_backend('triton') takes more");
    conv = {make_clips(x), data(weight_), data(bias_), weight_.size(0), make_frames(lengths_, x.size(0), x.size(1))};
  }

  const DType dtype;
  const Tensor x;
  const optional<Tensor> gain;
  DepthwiseConv conv;

 private:
  const Tensor weight_;
  const optional<Tensor> bias_, lengths_;
};

Tensor depthwise_conv_norm_op(const Tensor& x, const Tensor& conv_weight, const optional<Tensor>& conv_bias,
                              const optional<Tensor>& norm_weight, const optional<Tensor>& norm_bias, double eps,
                              const optional<Tensor>& lengths) {
  check::depthwise_conv_norm_forward(x, conv_weight, conv_bias, norm_weight, norm_bias, lengths);
  const c10::cuda::CUDAGuard guard(x.device());
  const Convolution op(x, conv_weight, conv_bias, norm_weight, lengths);
  const optional<Tensor> shift = contiguous(norm_bias);
  const Tensor y = empty_float(x, x.sizes(), x.scalar_type());
  check(conv_norm(op.dtype, {op.conv, data(op.gain), data(shift), static_cast<float>(eps), data(y)}, stream()));
  return y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> depthwise_conv_norm_backward_op(
    const Tensor& grad_any, const Tensor& x, const Tensor& conv_weight, const optional<Tensor>& conv_bias,
    const optional<Tensor>& norm_weight, double eps, const optional<Tensor>& lengths, bool need_x,
    bool need_parameters) {
  check::depthwise_conv_norm_backward(grad_any, x, conv_weight, conv_bias, norm_weight, lengths);
  const c10::cuda::CUDAGuard guard(x.device());
  const Convolution op(x, conv_weight, conv_bias, norm_weight, lengths);
  const Tensor grad = packed_features(grad_any), grad_convolved = empty_float(x, x.sizes());
  const int64_t taps = op.conv.taps, channels = x.size(2), chunks = x.size(0) * conv_chunks(op.conv.frames);
  const Tensor parts = empty_float(x, {need_parameters ? chunks : 0, (taps + 3) * channels});
  const auto empty = [&](at::IntArrayRef sizes) { return empty_float(x, sizes, x.scalar_type()); };
  const Tensor grad_x = empty(need_x ? x.sizes() : at::IntArrayRef{0});
  float* by = static_cast<float*>(data(grad_convolved));
  float* sums = static_cast<float*>(data(parts));
  check(conv_norm_gradient(op.dtype, {op.conv, data(op.gain), static_cast<float>(eps), make_clips(grad), by, sums},
                           stream()));
  check(conv_gradient(op.dtype, {op.conv, by, data(grad_x), sums}, stream()));
  if (!need_parameters) return {grad_x, empty({0}), empty({0}), empty({0}), empty({0})};
  const Tensor total = empty({(taps + 3) * channels});
  sum_columns(parts, total, false);
  const Tensor rows = total.view({taps + 3, channels});
  return {grad_x, rows.narrow(0, 0, taps).t().contiguous().unsqueeze(1), rows.select(0, taps).clone(),
          rows.select(0, taps + 1).clone(), rows.select(0, taps + 2).clone()};
}

}  // namespace
}  // namespace losatok::cuda

TORCH_LIBRARY_IMPL(losatok, CUDA, m) {
  m.impl("polar_istft_forward", losatok::cuda::polar_istft_op);
  m.impl("polar_istft_backward", losatok::cuda::polar_istft_backward_op);
  m.impl("depthwise_conv_norm_forward", losatok::cuda::depthwise_conv_norm_op);
  m.impl("depthwise_conv_norm_backward", losatok::cuda::depthwise_conv_norm_backward_op);
}
