// Row kernels of the vocoder ops, compiled once per instruction set. T is float, double or Bf16; what is computed in
// between is wide_t<T>. Rows are contiguous unless a stride says otherwise.
#pragma once

#include "cpu/simd/bottleneck.h"

#define LOSATOK_VOCODER_KERNELS                                                                                        \
  /* Log magnitudes, then phases, [rows, 2 bins], to the spectrum [rows, bins] of (real, imaginary). */                \
  template <class T>                                                                                                   \
  void polar(const T* head, int64_t stride, int64_t rows, int64_t bins, wide_t<T>* spectrum);                          \
  /* The gradient by the frames that an inverse real FFT of 2 (bins - 1) samples gave, transformed, to that by head.   \
   */                                                                                                                  \
  template <class T>                                                                                                   \
  void polar_backward(const T* head, int64_t stride, int64_t rows, int64_t bins, const wide_t<T>* transformed,         \
                      T* grad);                                                                                        \
  /* inverse[i] = 1 / sum of window[i + q hop]^2 over q in [first, last); 0 where that is below least. */              \
  template <class W>                                                                                                   \
  void inverse_envelope(const W* window, int64_t hop, int64_t first, int64_t last, W least, W* inverse);               \
  /* out[i] = inverse[i] * sum of frames[-f][i + f hop] window[i + f hop] over f in [first, last), from the last;      \
     frames are size apart. */                                                                                         \
  template <class W>                                                                                                   \
  void overlap(const W* frames, int64_t size, const W* window, int64_t hop, int64_t first, int64_t last,               \
               const W* inverse, int64_t count, W* out);                                                               \
  /* out[i] = x[i] a[i] b[i] */                                                                                        \
  template <class W>                                                                                                   \
  void product_of_three(const W* x, const W* a, const W* b, int64_t count, W* out);                                    \
  /* out[i] = bias + sum over j of weight[j] rows[i + j], for i < count; weight [taps, channels]. */                   \
  template <class T>                                                                                                   \
  void depthwise(const T* const* rows, const wide_t<T>* weight, const wide_t<T>* bias, int64_t count, int64_t taps,    \
                 int64_t channels, wide_t<T>* out);                                                                    \
  /* The same of wide rows to T: the gradient by rows, where weight has its taps reversed and bias is 0. */            \
  template <class T>                                                                                                   \
  void depthwise_backward(const wide_t<T>* const* rows, const wide_t<T>* weight, const wide_t<T>* bias, int64_t count, \
                          int64_t taps, int64_t channels, T* out);                                                     \
  /* out = (h - mean) / sqrt(variance + eps) gain + shift */                                                           \
  template <class T>                                                                                                   \
  void normalize(const wide_t<T>* h, const wide_t<T>* gain, const wide_t<T>* shift, wide_t<T> eps, int64_t count,      \
                 int64_t channels, T* out);                                                                            \
  /* h becomes the gradient before the normalisation. With gain_sums, they and shift_sums grow by the rows in          \
     [first, last). */                                                                                                 \
  template <class T>                                                                                                   \
  void normalize_backward(wide_t<T>* h, const T* grad, int64_t stride, const wide_t<T>* gain, wide_t<T> eps,           \
                          int64_t count, int64_t channels, int64_t first, int64_t last, wide_t<T>* gain_sums,          \
                          wide_t<T>* shift_sums);                                                                      \
  /* weight_sums[j] += sum over i of grad[i] rows[i + j]; bias_sums += sum over i of grad[i] */                        \
  template <class T>                                                                                                   \
  void depthwise_outer(const T* const* rows, const wide_t<T>* grad, int64_t count, int64_t taps, int64_t channels,     \
                       wide_t<T>* weight_sums, wide_t<T>* bias_sums);

LOSATOK_IN_EACH_ISA(LOSATOK_VOCODER_KERNELS)
#undef LOSATOK_VOCODER_KERNELS
