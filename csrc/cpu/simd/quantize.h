// Row kernels of the search for nearest codes, compiled once per instruction set (see cpu/isa.h).
#pragma once

#include <cstdint>

#include "cpu/simd/kernels.h"
#include "cpu/simd/values.h"

namespace losatok {

// The codes of one stage as the search sees them. The filter works on codes less a centre.
struct CodeTable {
  const float* codes;       // [count, features], as given
  const float* half_norms;  // |c - centre|^2 / 2, less its rounding; infinity where a code can never be chosen
  const float* norms;       // |c - centre|, rounded up
  int64_t count, features;
};

constexpr int64_t kScanLanes = 16;

// What a scan keeps of a row: per lane (code k falls into lane k % kScanLanes) the least score, its first code and the
// second least score.
struct ScanState {
  float best[kScanLanes], second[kScanLanes];
  int32_t code[kScanLanes];
};

// How far a score may be from the truth, in half squared distances: a code's by slack * (its norm), every code's by
// floor. `energy` is half the squared norm of the row, and `relative` what a distance by differences may lose.
struct ScanBound {
  float slack, floor, energy, relative;
};

}  // namespace losatok

#define LOSATOK_SIMD_KERNELS                                                                                         \
  /* out = x - centre, packed; norms[i] >= |out row i|. */                                                           \
  void centre_rows(const float* x, int64_t rows, int64_t columns, const float* centre, float* out, float* norms);    \
  /* out = x in bfloat16, rows `stride` apart; errors[i] >= |x row i - out row i|. */                                \
  void round_rows(const float* x, int64_t rows, int64_t columns, int64_t stride, Bf16* out, float* errors);          \
  /* Takes `width` codes from `first` into the states of `rows` rows: score = half_norm - product - slack * norm. */ \
  void scan_scores(const float* products, int64_t rows, int64_t first, int64_t width, const CodeTable& table,        \
                   const ScanBound* bounds, ScanState* states);                                                      \
  /* The code of the least score, and its squared distance by differences. */                                        \
  int64_t decide_by_score(const float* x, const CodeTable& table, const ScanState& state, float* distance);          \
  /* The code of the least distance by differences, among all whose score may be the least. */                       \
  int64_t decide_by_distance(const float* x, const CodeTable& table, const ScanState& state, const ScanBound& bound, \
                             float* distance);                                                                       \
  /* The code of the least distance by differences among all; 0 when none is finite. */                              \
  template <class T>                                                                                                 \
  int64_t nearest(const T* x, const T* codes, int64_t count, int64_t features, T* distance);

LOSATOK_IN_EACH_ISA(LOSATOK_SIMD_KERNELS)
#undef LOSATOK_SIMD_KERNELS
