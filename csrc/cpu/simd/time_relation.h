// Row kernels of the time-relation loss, compiled once per instruction set (see cpu/isa.h). R is float or double; H,
// the type of a gram tile of the teacher's features, is R, or Bf16 where R is float.
#pragma once

#include <cstdint>

#include "cpu/simd/kernels.h"
#include "cpu/simd/values.h"

namespace losatok {

// Which entries of a tile count. The tile holds rows i0.. and columns j0.. of a [T, T] matrix of which only j >= i0 is
// ever visited; its first `once` columns lie in the square on the diagonal, where both (i, j) and (j, i) are present,
// and the others stand for their mirror images too.
struct GramTile {
  int64_t rows, columns;
  int64_t offset;  // j0 - i0
  int64_t once;
  int64_t window;  // |i - j| <= window counts; pass the length of the clip for all
};

}  // namespace losatok

#define LOSATOK_SIMD_KERNELS                                                                                       \
  /* inverse[i] = 1 / max(|row i|, eps), and out (when not null) = row i * inverse[i], packed. */                  \
  template <class R>                                                                                               \
  void unit_rows(const R* x, int64_t rows, int64_t columns, int64_t stride, R eps, R* out, R* inverse);            \
  /* out row i = x row i * factor[i], packed. */                                                                   \
  template <class R>                                                                                               \
  void scaled_rows(const R* x, int64_t rows, int64_t columns, int64_t stride, const R* factor, R* out);            \
  /* low -= inverse_i inverse_j high, zero where nothing counts; returns the sum of squares of what counts. */     \
  template <class R, class H>                                                                                      \
  double gram_difference(R* low, const H* high, const GramTile& tile, const R* inverse_i, const R* inverse_j);     \
  /* Sum of squares of inverse_i inverse_j high over what counts. */                                               \
  template <class R, class H>                                                                                      \
  double gram_squares(const H* high, const GramTile& tile, const R* inverse_i, const R* inverse_j);                \
  template <class R>                                                                                               \
  void add_to_double(const R* x, int64_t count, double* sum);                                                      \
  template <class R>                                                                                               \
  double sum_of_squares(const R* x, int64_t count);                                                                \
  /* Gradient by unit rows l to gradient by the rows they came from: with e = g - factor h (h may be null),        \
     out = scale inverse (e - l (l.e)); where the norm was clamped to eps, out = scale inverse e. out may be g. */ \
  template <class R>                                                                                               \
  void through_normalization(const R* g, const R* h, const R* factor, const R* unit, const R* inverse, R eps,      \
                             int64_t rows, int64_t columns, R scale, R* out);

LOSATOK_IN_EACH_ISA(LOSATOK_SIMD_KERNELS)
#undef LOSATOK_SIMD_KERNELS
