// Row kernels of the bottleneck ops, compiled once per instruction set. Blocks are contiguous, [rows, columns].
#pragma once

#include <cstdint>

#include "cpu/simd/activation.h"
#include "cpu/simd/kernels.h"
#include "cpu/simd/values.h"

// T is float, double or Bf16. Each is instantiated in simd/bottleneck.cpp.
#define LOSATOK_BOTTLENECK_KERNELS                                                                                    \
  /* x += bias (null: none); x is copied to pre (null: not); then out = activation(x), which may be x or pre. */      \
  template <class T>                                                                                                  \
  void activate(Activation activation, const T* x, const T* bias, T* pre, T* out, int64_t rows, int64_t columns);     \
  /* out = activation(pre); grad *= activation'(pre); column_sums += sum of grad over rows. */                        \
  template <class T>                                                                                                  \
  void activate_backward(Activation activation, const T* pre, T* grad, T* out, wide_t<T>* column_sums, int64_t rows,  \
                         int64_t columns);                                                                            \
  /* Row i of restored against target[i], both normalised: returns the sum of their squared differences. With grad,   \
     restored becomes the gradient of half that sum, and column_sums gets its sum over rows added. */                 \
  template <class T>                                                                                                  \
  double cosine(T* restored, const T* const* target, bool grad, wide_t<T>* column_sums, int64_t rows,                 \
                int64_t columns);                                                                                     \
  /* The same where the target is float and restored is not. */                                                       \
  double cosine_to_float(Bf16* restored, const float* const* target, bool grad, float* column_sums, int64_t rows,     \
                         int64_t columns);                                                                            \
  /* out[i, j] = x[i] . weight[j] + bias[j] (null: none) for j in [first, last); x [rows, features] has rows x_stride \
     apart, weight and out are contiguous, out has columns columns. For few rows: weight is read once, as it lies.    \
     Bf16 takes its dot-product instruction in avx512. */                                                             \
  template <class T>                                                                                                  \
  void few_rows(const T* x, int64_t x_stride, int64_t rows, const T* weight, int64_t features, const T* bias, T* out, \
                int64_t columns, int64_t first, int64_t last);                                                        \
  /* sum += x */                                                                                                      \
  void accumulate(const Bf16* x, float* sum, int64_t count);

LOSATOK_IN_EACH_ISA(LOSATOK_BOTTLENECK_KERNELS)
#undef LOSATOK_BOTTLENECK_KERNELS
