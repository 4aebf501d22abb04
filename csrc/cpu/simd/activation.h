// Activations and their derivatives, for kernels compiled once per instruction set.
#pragma once

namespace losatok {

enum class Activation { kGelu, kGeluTanh, kSilu, kRelu, kNone };

}  // namespace losatok

#ifdef LOSATOK_ISA
#include <cmath>
#include <type_traits>

#include "cpu/simd/exponential.h"
#include "cpu/simd/values.h"

namespace losatok::LOSATOK_ISA {
namespace {  // nothing here may be shared between instruction sets by the linker

// The standard normal distribution and its density. In float: erfc(u) e^(u^2) = t Q(t) with t = 1 / (1 + 0.3 u), the
// form of Abramowitz & Stegun 7.1.26; Q is our own minimax fit of degree 8, relative error 2e-8 on 0 <= u <= 9.5.
inline void normal(float x, float* cdf, float* pdf) {
  const float size = std::fabs(x);
  const float t = 1.f / (1.f + 0.212132034f * size);
  float q = -0.12943408f;
  q = q * t + 0.48509645f;
  q = q * t - 0.5112265f;
  q = q * t + 0.54639506f;
  q = q * t - 0.09363125f;
  q = q * t + 0.21443628f;
  q = q * t + 0.14848243f;
  q = q * t + 0.17069194f;
  q = q * t + 0.16918962f;
  const float e = exponential(-0.5f * x * x);
  const float tail = 0.5f * e * (q * t);
  *cdf = x > 0.f ? 1.f - tail : tail;
  *pdf = 0.398942280f * e;
}
// The same to 1e-4 of each, for values that are bfloat16: Q of degree 5, relative error 3.3e-5.
inline void rough_normal(float x, float* cdf, float* pdf) {
  const float size = std::fabs(x);
  const float t = rough_reciprocal(1.f + 0.212132034f * (size < 1e18f ? size : 1e18f));
  float q = 0.77758668f;
  q = q * t - 1.01554856f;
  q = q * t + 1.02584730f;
  q = q * t - 0.19264419f;
  q = q * t + 0.24128167f;
  q = q * t + 0.16344447f;
  const float e = exponential<true>(-0.5f * x * x);
  const float tail = 0.5f * e * (q * t);
  *cdf = x > 0.f ? 1.f - tail : tail;
  *pdf = 0.398942280f * e;
}
inline void normal(double x, double* cdf, double* pdf) {
  *cdf = 0.5 * std::erfc(-x * 0.70710678118654752440);
  *pdf = 0.39894228040143267794 * std::exp(-0.5 * x * x);
}

// 1 / (1 + e^-x) and its derivative, by e^-|x|: exact to the last digits on both sides.
template <class W>
inline void sigmoid(W x, W* value, W* derivative) {
  const W e = exponential(-std::fabs(x)), r = W(1) / (W(1) + e);
  *value = x > W(0) ? r : e * r;
  *derivative = e * r * r;
}

// Value and derivative of an activation at x; a compile-time choice, so that loops over it become vector code.
// For values of T; W is what they are computed in.
template <Activation A, class T, class W>
inline void evaluate(W x, W* value, W* derivative) {
  if constexpr (A == Activation::kGelu) {
    W cdf, pdf;
    if constexpr (std::is_same_v<T, Bf16>)
      rough_normal(x, &cdf, &pdf);
    else
      normal(x, &cdf, &pdf);
    *value = x * cdf;
    *derivative = cdf + x * pdf;
  } else if constexpr (A == Activation::kGeluTanh) {
    const W k = W(1.5957691216057307117), c = W(0.044715);  // 2 sqrt(2 / pi): (1 + tanh y) / 2 = sigmoid(2 y)
    W s, ds, square = x * x;
    sigmoid(k * (x + c * x * square), &s, &ds);
    square = square < W(1e6) ? square : W(1e6);  // there ds is 0, and infinity times it would not be
    *value = x * s;
    *derivative = s + x * ds * k * (W(1) + W(3) * c * square);
  } else if constexpr (A == Activation::kSilu) {
    W s, ds;
    sigmoid(x, &s, &ds);
    *value = x * s;
    *derivative = s + x * ds;
  } else if constexpr (A == Activation::kRelu) {
    *value = x <= W(0) ? W(0) : x;
    *derivative = x <= W(0) ? W(0) : W(1);
  } else {
    *value = x;
    *derivative = W(1);
  }
}

template <class Loop>
inline void by_activation(Activation activation, Loop&& loop) {
  switch (activation) {
    case Activation::kGelu:
      return loop.template operator()<Activation::kGelu>();
    case Activation::kGeluTanh:
      return loop.template operator()<Activation::kGeluTanh>();
    case Activation::kSilu:
      return loop.template operator()<Activation::kSilu>();
    case Activation::kRelu:
      return loop.template operator()<Activation::kRelu>();
    case Activation::kNone:
      return loop.template operator()<Activation::kNone>();
  }
}

}  // namespace
}  // namespace losatok::LOSATOK_ISA
#endif
