#include "cpu/simd/bottleneck.h"

#include <cmath>
#include <type_traits>

#include "cpu/simd/exponential.h"

namespace losatok::LOSATOK_ISA {
namespace {  // nothing here may be shared between instruction sets by the linker

constexpr double kNormEps = 1e-12;

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

template <class T, class U>
double cosine_rows(T* restored, const U* const* target, bool grad, wide_t<T>* column_sums, int64_t rows,
                   int64_t columns) {
  using W = wide_t<T>;
  double total = 0;
  for (int64_t i = 0; i < rows; ++i) {
    T* r = restored + i * columns;
    const U* t = target[i];
    W rr = 0, tt = 0, rt = 0;
#pragma omp simd reduction(+ : rr, tt, rt)
    for (int64_t j = 0; j < columns; ++j) {
      const W a = load(r[j]), b = W(load(t[j]));
      rr += a * a;
      tt += b * b;
      rt += a * b;
    }
    const W eps = W(kNormEps), r_norm = std::sqrt(rr), t_norm = std::sqrt(tt);
    const W r_inverse = W(1) / (r_norm < eps ? eps : r_norm), t_inverse = W(1) / (t_norm < eps ? eps : t_norm);
    W squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t j = 0; j < columns; ++j) {
      const W difference = load(r[j]) * r_inverse - W(load(t[j])) * t_inverse;
      squares += difference * difference;
    }
    total += squares;
    if (!grad) continue;
    // With a = r / |r|, b = t / |t|: the gradient is ((a - b) - a (a . (a - b))) / |r| = (a (a . b) - b) / |r|. Below
    // eps the divisor is the constant eps, and the gradient (a - b) / eps.
    const W cosine = r_norm < eps ? W(1) : rt * r_inverse * t_inverse;
    const W r_factor = cosine * r_inverse * r_inverse, t_factor = t_inverse * r_inverse;
#pragma omp simd
    for (int64_t j = 0; j < columns; ++j) {
      const W gradient = load(r[j]) * r_factor - W(load(t[j])) * t_factor;
      store(r + j, gradient);
      column_sums[j] += gradient;
    }
  }
  return total;
}

}  // namespace

template <class T>
void activate(Activation activation, const T* x, const T* bias, T* pre, T* out, int64_t rows, int64_t columns) {
  using W = wide_t<T>;
  by_activation(activation, [&]<Activation A>() {
    for (int64_t i = 0; i < rows; ++i) {
      const T* row = x + i * columns;
      T* kept = pre ? pre + i * columns : nullptr;
      T* to = out + i * columns;
      if (bias || kept) {
#pragma omp simd
        for (int64_t j = 0; j < columns; ++j) {
          W value = load(row[j]), derivative;
          if (bias) value += load(bias[j]);
          if (kept) store(kept + j, value);
          evaluate<A, T>(value, &value, &derivative);
          store(to + j, value);
        }
      } else {
#pragma omp simd
        for (int64_t j = 0; j < columns; ++j) {
          W value, derivative;
          evaluate<A, T>(load(row[j]), &value, &derivative);
          store(to + j, value);
        }
      }
    }
  });
}

template <class T>
void activate_backward(Activation activation, const T* pre, T* grad, T* out, wide_t<T>* column_sums, int64_t rows,
                       int64_t columns) {
  using W = wide_t<T>;
  by_activation(activation, [&]<Activation A>() {
    for (int64_t i = 0; i < rows; ++i) {
      const T* row = pre + i * columns;
      T* gradient = grad + i * columns;
      T* to = out + i * columns;
#pragma omp simd
      for (int64_t j = 0; j < columns; ++j) {
        W value, derivative;
        evaluate<A, T>(load(row[j]), &value, &derivative);
        const W product = load(gradient[j]) * derivative;
        store(to + j, value);
        store(gradient + j, product);
        column_sums[j] += product;
      }
    }
  });
}

template <class T>
double cosine(T* restored, const T* const* target, bool grad, wide_t<T>* column_sums, int64_t rows, int64_t columns) {
  return cosine_rows(restored, target, grad, column_sums, rows, columns);
}

double cosine_to_float(Bf16* restored, const float* const* target, bool grad, float* column_sums, int64_t rows,
                       int64_t columns) {
  return cosine_rows(restored, target, grad, column_sums, rows, columns);
}

void accumulate(const Bf16* x, float* sum, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) sum[i] += load(x[i]);
}

#define LOSATOK_INSTANTIATE(T)                                                                    \
  template void activate<T>(Activation, const T*, const T*, T*, T*, int64_t, int64_t);            \
  template void activate_backward<T>(Activation, const T*, T*, T*, wide_t<T>*, int64_t, int64_t); \
  template double cosine<T>(T*, const T* const*, bool, wide_t<T>*, int64_t, int64_t);
LOSATOK_INSTANTIATE(float)
LOSATOK_INSTANTIATE(double)
LOSATOK_INSTANTIATE(Bf16)

}  // namespace losatok::LOSATOK_ISA
