// Fourier transforms of real rows, compiled once per instruction set. Each row takes one lane of the vectors, so that
// its result does not depend on the rows beside it, nor on the thread that computes it. W is float or double.
#pragma once

#include "cpu/simd/kernels.h"

namespace losatok {

// What transforms of rows of `2 half` real samples need; RealFourier in cpu/fourier.h makes it.
template <class W>
struct FourierTables {
  int64_t half;            // complex values that stand for the samples
  const int64_t* factors;  // of half, in the order of the passes
  int64_t passes;          // how many factors there are
  const W* turns;          // cos, then sin, of 2 pi k / (2 half) for k in [0, 2 half)
  W* work;                 // kFourierWork bytes for each of half + 1 values, aligned to 64 bytes
};

constexpr int64_t kFourierWork = 4 * 64;

}  // namespace losatok

#define LOSATOK_FOURIER_KERNELS                                                                                 \
  /* Spectra [rows, half + 1] of (real, imaginary) to samples [rows, 2 half]; the imaginary parts of the first  \
     and the last bin count as zero. Scaled by 1 / (2 half), as torch.fft.irfft. */                             \
  template <class W>                                                                                            \
  void inverse_fourier(const FourierTables<W>& tables, const W* spectra, int64_t rows, W* samples);             \
  /* Samples [rows, 2 half] to spectra [rows, half + 1] of (real, imaginary), not scaled, as torch.fft.rfft. */ \
  template <class W>                                                                                            \
  void forward_fourier(const FourierTables<W>& tables, const W* samples, int64_t rows, W* spectra);

LOSATOK_IN_EACH_ISA(LOSATOK_FOURIER_KERNELS)
#undef LOSATOK_FOURIER_KERNELS
