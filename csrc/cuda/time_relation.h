// Launchers of the time-relation ops. Pointers are to device memory; clips are [B, T, C] with the given strides in
// elements and contiguous features. Every launcher returns the launch's error and waits for nothing.
#pragma once

#include "cuda/launch_types.h"

namespace losatok::cuda {

// inverse[b, t] = 1 / max(|clips[b, t]|, 1e-12), 0 past a clip's length.
cudaError_t inverse_norms(DType dtype, const Clips& clips, const Frames& frames, float* inverse, cudaStream_t stream);

enum class Relation : int { kEnergy, kLoss, kLossAndGrad };

// The tiled algorithm: Gram matrices exist one tile of kTile x kTile at a time.
//   kEnergy: terms [B, time_blocks, column_splits]: shares of the sum over valid pairs of (h_i.h_j)^2
//   kLoss: likewise of (l_i.l_j - h_i.h_j)^2; both visit half of the tiles, by symmetry
//   kLossAndGrad: terms [B, time_blocks, 1], and grad [B, T, d] = 4 sum_j (l_i.l_j - h_i.h_j) l_j, towards normalised
//   rows
struct TiledRelation {
  Clips low, high;  // low is not used by kEnergy
  const float* low_inverse;
  const float* high_inverse;
  Frames frames;
  int64_t window;  // negative: none
  float* terms;
  float* grad;
};

constexpr int64_t kTile = 64;

// Among how many blocks a row block's column tiles are shared out: always 1 for kLossAndGrad.
int64_t column_splits(Relation kind, int64_t batch, int64_t time, int processors);

cudaError_t tiled_relation(DType dtype, Relation kind, const TiledRelation& arguments, int64_t splits,
                           cudaStream_t stream);

// rows [items, count, features] in float32 = the normalised rows t0 .. t0 + count of items b0 .. b0 + items, zeros past
// a clip's length.
cudaError_t normalize_clips(DType dtype, const Clips& clips, const Frames& frames, int64_t b0, int64_t items,
                            int64_t t0, int64_t count, float* rows, cudaStream_t stream);

// totals[b] += factor * sum of squares of matrices[b], or = where `first`; matrices [items, count].
cudaError_t add_square_sums(const float* matrices, int64_t items, int64_t count, double factor, bool first,
                            double* totals, cudaStream_t stream);

// grad_low[b, t] = scale * inverse norm * (grad - l (l.grad)) with l the normalised row of low: from the gradient
// towards normalised rows to the gradient towards rows, in place. Rows past a clip's length become 0.
cudaError_t normalize_backward(DType dtype, const Clips& low, const Frames& frames, const float* scale, float* grad,
                               cudaStream_t stream);

}  // namespace losatok::cuda
