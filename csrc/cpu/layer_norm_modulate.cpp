// layer_norm_modulate on the CPU: a row is read from memory once, and serves its statistics and its result from cache.
#include <torch/library.h>

#include <tuple>

#include "cpu/modulation.h"

namespace losatok::modulation {
namespace {

std::tuple<Tensor, Tensor, Tensor> layer_norm_modulate_forward(const Tensor& x, const Tensor& shift,
                                                               const Tensor& scale, double eps) {
  check::layer_norm_modulate_forward(x, shift, scale);
  const Tensor from = prepared(x), add = prepared(shift), times = prepared(scale);
  Tensor y = at::empty(x.sizes(), from.options());
  const auto wide = x.options().dtype(check::wide_type(x.scalar_type()));
  Tensor mean = at::empty({x.size(0), x.size(1)}, wide), rstd = at::empty_like(mean);
  by_type(from.scalar_type(), [&]<class T>() {
    using W = wide_t<T>;
    W *means = mean.mutable_data_ptr<W>(), *inverses = rstd.mutable_data_ptr<W>();
    for_chunks(from, [&](int64_t b, int64_t t, int64_t frames, int64_t) {
      const int64_t row = b * x.size(1) + t;
      LOSATOK_SIMD(layer_norm_modulate<T>)
      (rows<const T>(from, b, t), frames, x.size(2), rows<const T>(add, b, t), rows<const T>(times, b, t),
       static_cast<W>(eps), rows<T>(y, b, t), means + row, inverses + row);
    });
  });
  return {y.to(x.scalar_type()), mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> layer_norm_modulate_backward(const Tensor& grad, const Tensor& x,
                                                                const Tensor& scale, const Tensor& mean,
                                                                const Tensor& rstd, bool per_frame_shift) {
  check::layer_norm_modulate_backward(grad, x, scale, mean, rstd);
  const Tensor from = prepared(x), times = prepared(scale), gradient = prepared(grad);
  const Tensor means = mean.contiguous(), inverses = rstd.contiguous();
  const Tensor grad_x = at::empty(x.sizes(), from.options());
  const at::ScalarType type = x.scalar_type();
  std::tuple<Tensor, Tensor, Tensor> result;
  by_type(from.scalar_type(), [&]<class T>() {
    using W = wide_t<T>;
    const Gradient<T> grad_shift(from, per_frame_shift), grad_scale(from, scale.dim() == 3);
    for_chunks(from, [&](int64_t b, int64_t t, int64_t frames, int64_t chunk) {
      const int64_t row = b * x.size(1) + t;
      LOSATOK_SIMD(layer_norm_modulate_backward<T>)
      (rows<const T>(gradient, b, t), rows<const T>(from, b, t), frames, x.size(2), rows<const T>(times, b, t),
       means.const_data_ptr<W>() + row, inverses.const_data_ptr<W>() + row, rows<T>(grad_x, b, t),
       grad_shift.chunk(b, t, chunk), grad_scale.chunk(b, t, chunk));
    });
    result = {grad_x.to(type), grad_shift.finish(type), grad_scale.finish(type)};
  });
  return result;
}

}  // namespace
}  // namespace losatok::modulation

TORCH_LIBRARY_IMPL(losatok, CPU, m) {
  m.impl("layer_norm_modulate_forward", &losatok::modulation::layer_norm_modulate_forward);
  m.impl("layer_norm_modulate_backward", &losatok::modulation::layer_norm_modulate_backward);
}
