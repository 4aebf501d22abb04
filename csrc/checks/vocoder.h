// Checks of polar_istft and depthwise_conv_norm.
#pragma once

#include "checks/arguments.h"

namespace losatok::check {

inline void polar_istft_forward(const Tensor& head, const Tensor& window, int64_t hop, const OptionalTensor& lengths) {
  floating("head", head);
  floating_beside("window", window, head, {kAny});
  const int64_t size = window.size(0);
  TORCH_CHECK_VALUE(size > 0 && size % 2 == 0, "window should have shape [n_fft] with n_fft even, got ",
                    window.sizes());
  TORCH_CHECK_VALUE(hop > 0 && size % hop == 0 && (size - hop) % 2 == 0,
                    "hop should divide the window and leave an even number of samples of it, got ", hop);
  sizes("head", head, {kAny, kAny, size + 2});
  check::lengths(lengths, head);
}

inline void polar_istft_backward(const Tensor& grad, const Tensor& head, const Tensor& window, int64_t hop,
                                 const OptionalTensor& lengths) {
  polar_istft_forward(head, window, hop, lengths);
  floating_beside("grad", grad, head, {head.size(0), head.size(1) * hop});
}

// x [B, T, C], conv_weight [C, 1, k], the other parameters [C], all of one dtype.
inline void convolved(const Tensor& x, const Tensor& conv_weight, const OptionalTensor& conv_bias,
                      const OptionalTensor& norm_weight, const OptionalTensor& lengths) {
  clips("x", x);
  const int64_t channels = x.size(2);
  TORCH_CHECK_VALUE(channels > 0, "x should have at least one channel (its last size), got ", x.sizes());
  like("conv_weight", conv_weight, x, {channels, 1, kAny});
  TORCH_CHECK_VALUE(conv_weight.size(2) % 2 == 1, "conv_weight should have an odd number of taps (its last size), got ",
                    conv_weight.size(2));
  like("conv_bias", conv_bias, x, {channels});
  like("norm_weight", norm_weight, x, {channels});
  check::lengths(lengths, x);
}

inline void depthwise_conv_norm_forward(const Tensor& x, const Tensor& conv_weight, const OptionalTensor& conv_bias,
                                        const OptionalTensor& norm_weight, const OptionalTensor& norm_bias,
                                        const OptionalTensor& lengths) {
  convolved(x, conv_weight, conv_bias, norm_weight, lengths);
  like("norm_bias", norm_bias, x, {x.size(2)});
}

inline void depthwise_conv_norm_backward(const Tensor& grad, const Tensor& x, const Tensor& conv_weight,
                                         const OptionalTensor& conv_bias, const OptionalTensor& norm_weight,
                                         const OptionalTensor& lengths) {
  convolved(x, conv_weight, conv_bias, norm_weight, lengths);
  like("grad", grad, x, {x.size(0), x.size(1), x.size(2)});
}

}  // namespace losatok::check
