// Launchers that both families share: masked copies, column sums, and the last step of a mean over valid frames or
// pairs.
#pragma once

#include "cuda/launch_types.h"

namespace losatok::cuda {

// to[n] = from[n] for valid rows first_row + n of [B * T], zeros for the others, which are not read.
cudaError_t copy_valid_rows(DType dtype, const void* from, void* to, int64_t rows, int64_t columns, int64_t first_row,
                            const Frames& frames, cudaStream_t stream);

// sums[c] (+)= the sum of values[:, c] over the rows, in a fixed order. partial holds column_sum_blocks(rows) *
// columns.
int64_t column_sum_blocks(int64_t rows);
cudaError_t column_sums(DType dtype, const void* values, int64_t rows, int64_t columns, int64_t stride, float* partial,
                        DType sums_dtype, void* sums, bool accumulate, cudaStream_t stream);

// sums [items, columns] = the sums over chunks of parts [items, chunks, columns], in a fixed order.
cudaError_t sum_chunks(const float* parts, int64_t items, int64_t chunks, int64_t columns, DType dtype, void* sums,
                       cudaStream_t stream);

// totals[b] = the sum of terms[b, 0 .. count], in a fixed order and in double.
cudaError_t sum_terms(const float* terms, int64_t batch, int64_t count, double* totals, cudaStream_t stream);

// What a sum over a batch is divided by: its valid frames times `factor`, or its valid pairs (i, j) with
// |i - j| <= window (negative: all).
struct MeanOver {
  Frames frames;
  bool pairs;
  int64_t window;
  int64_t factor;
};

// scale = 1 / max(what the mean runs over, 1) and loss = max(sum of totals[0 .. count], 0) * scale. The bound matters
// where totals are differences: rounding may leave one that should be 0 below it.
cudaError_t finish_mean(const double* totals, int64_t count, const MeanOver& mean, float* loss, float* scale,
                        cudaStream_t stream);

}  // namespace losatok::cuda
