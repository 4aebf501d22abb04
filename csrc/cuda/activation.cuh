// The activations of the bottleneck and their derivatives, in float32.
#pragma once

#include "cuda/device.cuh"

namespace losatok::cuda {

__device__ __forceinline__ float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }

// The argument of tanh in GELU's tanh form (Hendrycks and Gimpel, 2016).
__device__ __forceinline__ float gelu_tanh_argument(float x) {
  return 0.7978845608028654f * (x + 0.044715f * x * x * x);
}

__device__ __forceinline__ float activate(Activation kind, float x) {
  switch (kind) {
    case Activation::kGelu:
      return 0.5f * x * (1.f + erff(x * 0.7071067811865476f));
    case Activation::kGeluTanh:
      return 0.5f * x * (1.f + tanhf(gelu_tanh_argument(x)));
    case Activation::kSilu:
      return x * sigmoid(x);
    case Activation::kRelu:
      return x < 0.f ? 0.f : x;  // NaN stays NaN
    default:
      return x;
  }
}

__device__ __forceinline__ float activate_derivative(Activation kind, float x) {
  switch (kind) {
    case Activation::kGelu:
      return 0.5f * (1.f + erff(x * 0.7071067811865476f)) + x * 0.3989422804014327f * expf(-0.5f * x * x);
    case Activation::kGeluTanh: {
      const float t = tanhf(gelu_tanh_argument(x));
      return 0.5f * (1.f + t) + 0.5f * x * (1.f - t * t) * 0.7978845608028654f * (1.f + 3.f * 0.044715f * x * x);
    }
    case Activation::kSilu: {
      const float s = sigmoid(x);
      return s * (1.f + x * (1.f - s));
    }
    case Activation::kRelu:
      return x > 0.f ? 1.f : 0.f;
    default:
      return 1.f;
  }
}

}  // namespace losatok::cuda
