// Row kernels of layer_norm_modulate and gated_residual, compiled once per instruction set (see cpu/isa.h).
#pragma once

#include <cstdint>

#include "cpu/simd/kernels.h"
#include "cpu/simd/values.h"

namespace losatok {

// Rows in memory, `stride` apart; 0 where one row serves them all.
template <class T>
struct Rows {
  T* data;
  int64_t stride;
};

// Where the gradient of a shift, scale or gate goes: to rows of its own, or, one for all rows, into column sums.
template <class T>
struct ParameterGrad {
  Rows<T> rows;  // data null: sums
  wide_t<T>* sums;
};

}  // namespace losatok

// T is float, double or Bf16.
#define LOSATOK_MODULATION_KERNELS                                                                                     \
  /* y = (x - mean) * rstd * (1 + scale) + shift; mean and rstd of each row are given back. */                         \
  template <class T>                                                                                                   \
  void layer_norm_modulate(Rows<const T> x, int64_t rows, int64_t columns, Rows<const T> shift, Rows<const T> scale,   \
                           wide_t<T> eps, Rows<T> y, wide_t<T>* mean, wide_t<T>* rstd);                                \
  /* Its gradients; what is one for all rows is added to sums. */                                                      \
  template <class T>                                                                                                   \
  void layer_norm_modulate_backward(Rows<const T> grad, Rows<const T> x, int64_t rows, int64_t columns,                \
                                    Rows<const T> scale, const wide_t<T>* mean, const wide_t<T>* rstd, Rows<T> grad_x, \
                                    ParameterGrad<T> grad_shift, ParameterGrad<T> grad_scale);                         \
  /* y = x + gate * branch */                                                                                          \
  template <class T>                                                                                                   \
  void gated_residual(Rows<const T> x, Rows<const T> branch, Rows<const T> gate, int64_t rows, int64_t columns,        \
                      Rows<T> y);                                                                                      \
  /* grad_branch = gate * grad; the gradient of gate is grad * branch. */                                              \
  template <class T>                                                                                                   \
  void gated_residual_backward(Rows<const T> grad, Rows<const T> branch, Rows<const T> gate, int64_t rows,             \
                               int64_t columns, Rows<T> grad_branch, ParameterGrad<T> grad_gate);

LOSATOK_IN_EACH_ISA(LOSATOK_MODULATION_KERNELS)
#undef LOSATOK_MODULATION_KERNELS
