// Launches of time_relation_loss and gram_energy.
#include "cuda/time_relation.h"
#include "launches/launches.h"

namespace launches {

namespace {

void relation(DType dtype, int64_t time, int64_t low_features, int64_t high_features, int64_t window) {
  const int64_t lengths[] = {time, time / 2};
  const Frames frames{lengths, 2, time};
  Buffer low(dtype, 2 * time * low_features), high(dtype, 2 * time * high_features);
  low.random();
  high.random();
  const Clips low_clips{low.data(), low_features, time * low_features, low_features};
  const Clips high_clips{high.data(), high_features, time * high_features, high_features};
  Buffer low_inverse(DType::kFloat, 2 * time), high_inverse(DType::kFloat, 2 * time);
  check(inverse_norms(dtype, low_clips, frames, low_inverse.nan().floats(), nullptr), "inverse_norms");
  check(inverse_norms(dtype, high_clips, frames, high_inverse.nan().floats(), nullptr), "inverse_norms");
  const int64_t blocks = (time + kTile - 1) / kTile;
  for (const Relation kind : {Relation::kEnergy, Relation::kLoss, Relation::kLossAndGrad}) {
    const int64_t splits = column_splits(kind, 2, time, 4);
    Buffer terms(DType::kFloat, 2 * blocks * splits), grad(DType::kFloat, 2 * time * low_features);
    const TiledRelation a{low_clips, high_clips, low_inverse.floats(), high_inverse.floats(),
                          frames,    window,     terms.nan().floats(), grad.nan().floats()};
    check(tiled_relation(dtype, kind, a, splits, nullptr), "tiled_relation");
    terms.expect_finite("terms");
    if (kind != Relation::kLossAndGrad) continue;
    double totals[2];
    Buffer loss(DType::kFloat, 1), scale(DType::kFloat, 1);
    check(sum_terms(terms.floats(), 2, blocks * splits, totals, nullptr), "sum_terms");
    check(finish_mean(totals, 2, {frames, true, window, 1}, loss.nan().floats(), scale.nan().floats(), nullptr),
          "finish_mean");
    check(normalize_backward(dtype, low_clips, frames, scale.floats(), grad.floats(), nullptr), "normalize_backward");
    grad.expect_finite("grad_low");
  }
  Buffer normal(DType::kFloat, 7 * high_features);
  check(normalize_clips(dtype, high_clips, frames, 1, 1, time / 2 - 3, 7, normal.nan().floats(), nullptr),
        "normalize_clips");
  normal.expect_finite("normalised rows");
  double total;
  check(add_square_sums(normal.floats(), 1, 7 * high_features, -2., true, &total, nullptr), "add_square_sums");
}

}  // namespace

void time_relation(DType dtype, DType) {
  relation(dtype, 67, 9, 40, -1);
  relation(dtype, 70, 136, 8, 2);
}

}  // namespace launches
