// gated_residual on the CPU.
#include <torch/library.h>

#include <tuple>

#include "cpu/modulation.h"

namespace losatok::modulation {
namespace {

Tensor gated_residual_forward(const Tensor& x, const Tensor& branch, const Tensor& gate) {
  check::gated_residual_forward(x, branch, gate);
  const Tensor from = prepared(x), side = prepared(branch), times = prepared(gate);
  const Tensor y = at::empty(x.sizes(), from.options());
  by_type(from.scalar_type(), [&]<class T>() {
    for_chunks(from, [&](int64_t b, int64_t t, int64_t frames, int64_t) {
      LOSATOK_SIMD(gated_residual<T>)
      (rows<const T>(from, b, t), rows<const T>(side, b, t), rows<const T>(times, b, t), frames, x.size(2),
       rows<T>(y, b, t));
    });
  });
  return y.to(x.scalar_type());
}

std::tuple<Tensor, Tensor> gated_residual_backward(const Tensor& grad, const Tensor& branch, const Tensor& gate) {
  check::gated_residual_backward(grad, branch, gate);
  const Tensor gradient = prepared(grad), side = prepared(branch), times = prepared(gate);
  const Tensor grad_branch = at::empty(branch.sizes(), side.options());
  const at::ScalarType type = branch.scalar_type();
  std::tuple<Tensor, Tensor> result;
  by_type(side.scalar_type(), [&]<class T>() {
    const Gradient<T> grad_gate(side, gate.dim() == 3);
    for_chunks(side, [&](int64_t b, int64_t t, int64_t frames, int64_t chunk) {
      LOSATOK_SIMD(gated_residual_backward<T>)
      (rows<const T>(gradient, b, t), rows<const T>(side, b, t), rows<const T>(times, b, t), frames, branch.size(2),
       rows<T>(grad_branch, b, t), grad_gate.chunk(b, t, chunk));
    });
    result = {grad_branch.to(type), grad_gate.finish(type)};
  });
  return result;
}

}  // namespace
}  // namespace losatok::modulation

TORCH_LIBRARY_IMPL(losatok, CPU, m) {
  m.impl("gated_residual_forward", &losatok::modulation::gated_residual_forward);
  m.impl("gated_residual_backward", &losatok::modulation::gated_residual_backward);
}
