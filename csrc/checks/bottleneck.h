// Checks of bottleneck_project, normalized_reconstruction_loss and int8_linear.
#pragma once

#include "checks/arguments.h"

namespace losatok::check {

// The activation of that name, of either enumeration of them.
template <class Activation>
Activation activation(std::string_view name) {
  if (name == "gelu") return Activation::kGelu;
  if (name == "gelu_tanh") return Activation::kGeluTanh;
  if (name == "silu") return Activation::kSilu;
  if (name == "relu") return Activation::kRelu;
  TORCH_CHECK_VALUE(name == "none", "activation should be one of gelu, gelu_tanh, silu, relu, none, got ", name);
  return Activation::kNone;
}

// weight_in [H, features] and weight_out [out, H], like x.
inline void weights(const Tensor& x, const Tensor& weight_in, const Tensor& weight_out) {
  like("weight_in", weight_in, x, {kAny, x.size(-1)});
  like("weight_out", weight_out, x, {kAny, weight_in.size(0)});
  TORCH_CHECK_VALUE(weight_in.numel() > 0 && weight_out.numel() > 0,
                    "weight_in and weight_out should not be empty, got ", weight_in.sizes(), " and ",
                    weight_out.sizes());
}

inline void biases(const Tensor& x, const Tensor& weight_in, const OptionalTensor& bias_in, const Tensor& weight_out,
                   const OptionalTensor& bias_out) {
  like("bias_in", bias_in, x, {weight_in.size(0)});
  like("bias_out", bias_out, x, {weight_out.size(0)});
}

inline void bottleneck_project_forward(const Tensor& x, const Tensor& weight_in, const OptionalTensor& bias_in,
                                       const Tensor& weight_out, const OptionalTensor& bias_out) {
  floating("x", x);
  sizes("x", x, {kAny, kAny});
  weights(x, weight_in, weight_out);
  biases(x, weight_in, bias_in, weight_out, bias_out);
}

inline void bottleneck_project_backward(const Tensor& grad, const Tensor& x, const Tensor& hidden,
                                        const Tensor& weight_in, const Tensor& weight_out) {
  floating("x", x);
  sizes("x", x, {kAny, kAny});
  weights(x, weight_in, weight_out);
  like("hidden", hidden, x, {x.size(0), weight_in.size(0)});
  like("grad", grad, x, {x.size(0), weight_out.size(0)});
}

inline void normalized_reconstruction_loss_forward(const Tensor& z, const Tensor& target, const Tensor& weight_in,
                                                   const OptionalTensor& bias_in, const Tensor& weight_out,
                                                   const OptionalTensor& bias_out, const OptionalTensor& lengths) {
  clips("z", z);
  weights(z, weight_in, weight_out);
  biases(z, weight_in, bias_in, weight_out, bias_out);
  floating_beside("target", target, z, {z.size(0), z.size(1), weight_out.size(0)});
  check::lengths(lengths, z);
}

inline void int8_linear_forward(const Tensor& x, const Tensor& weight, const Tensor& scale,
                                const OptionalTensor& bias) {
  floating("x", x);
  sizes("x", x, {kAny, kAny});
  dtype("weight", weight, at::kChar);
  device("weight", weight, x.device());
  sizes("weight", weight, {kAny, x.size(1)});
  floating_beside("scale", scale, x, {weight.size(0)});
  if (given(bias)) floating_beside("bias", *bias, x, {weight.size(0)});
}

}  // namespace losatok::check
