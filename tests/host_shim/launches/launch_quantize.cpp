// Launches of the quantizers.
#include "cuda/quantize.h"
#include "cuda/quantize_scalar.h"
#include "launches/launches.h"

namespace launches {

namespace {

// The search for nearest codes in all its ways, and what is done with what it finds.
void search(DType dtype, DType other, int64_t time, int64_t features, int64_t count, int64_t offset) {
  const int64_t lengths[] = {time, time / 2};
  const Frames frames{lengths, 2, time};
  const int64_t rows = 2 * time, stages = 2, padded = padded_codes(count), depth = product_depth(features);
  Buffer x(dtype, rows * features, offset), codes(DType::kFloat, stages * count * features);
  x.random();
  codes.random();
  for (int64_t j = 0; j < features; ++j) codes.floats()[(count - 1) * features + j] = codes.floats()[j];
  Buffer centres(DType::kFloat, stages * features), rounded(DType::kHalf, stages * padded * depth);
  Buffer half_norms(DType::kFloat, stages * padded), norms(DType::kFloat, stages * padded);
  Buffer scales(DType::kFloat, stages * padded), distances(DType::kFloat, 2 * rows);
  for (Buffer* b : {&centres, &rounded, &half_norms, &norms, &scales, &distances}) b->nan();
  const CodedRows coded{dtype, x.data(), features, time * features, features, frames};
  PreparedCodes ready{codes.floats(), centres.floats(), rounded.data(), half_norms.floats(),
                      norms.floats(), scales.floats(),  stages,         count,
                      features};
  check(prepare_codes(ready, nullptr), "prepare_codes");
  std::vector<int64_t> indices(rows * stages), parts(2 * rows);
  const Search chain{coded, ready, indices.data(), nullptr, 1, padded, true};
  check(search_codes(chain, nullptr), "search_codes");
  check(scan_codes(chain, nullptr), "scan_codes");
  ready.stages = 1;
  const int64_t tiles = padded / kCodeTile, splits = tiles > 1 ? 2 : 1;
  const int64_t per_split = (tiles + splits - 1) / splits * kCodeTile;
  const Search split{coded, ready, parts.data(), distances.floats(), splits, per_split, offset != 0};
  check(scan_codes(split, nullptr), "scan_codes");
  check(search_codes(split, nullptr), "search_codes");
  std::vector<int64_t> joined(rows);
  Buffer nearest(DType::kFloat, rows);
  check(
      join_splits(parts.data(), distances.floats(), split.splits, rows, joined.data(), nearest.nan().floats(), nullptr),
      "join_splits");
  nearest.expect_finite("squared distance");

  Buffer sums(other, rows * features), books(dtype, stages * count * features);
  check(
      sum_of_codes(dtype, other,
                   {indices.data(), books.random().data(), sums.nan().data(), rows, stages, count, features}, nullptr),
      "sum_of_codes");
  sums.expect_finite("sum of codes");
  Buffer weights(DType::kFloat, rows), grad(dtype, rows * features), grad_codes(other, count * features);
  std::vector<int64_t> chosen = joined;  // with codes that are not there, as a caller may name them
  chosen.front() = int64_t{1} << 40;
  chosen.back() = stages * count;
  check(distance_gradient(coded, weights.random().floats(), codes.floats(), count, chosen.data(), grad.nan().data(),
                          nullptr),
        "distance_gradient");
  grad.expect_finite("grad_x");
  std::vector<int64_t> order, starts{0};
  for (int64_t k = 0; k < count; ++k) {
    for (int64_t n = 0; n < rows; ++n)
      if (joined[n] == k) order.push_back(n);
    starts.push_back(static_cast<int64_t>(order.size()));
  }
  for (const float* w : {static_cast<const float*>(nullptr), static_cast<const float*>(weights.floats())}) {
    check(code_gradient(other, {coded, w, codes.floats(), order.data(), starts.data(), grad_codes.nan().data(), count},
                        nullptr),
          "code_gradient");
    grad_codes.expect_finite("grad_codes");
  }
}

void levels_and_integers(DType dtype, int64_t columns) {
  const int64_t lengths[] = {7, 2};
  const Frames frames{lengths, 2, 7};
  Levels levels = {};
  levels.features = 3;
  for (int j = 0; j < 3; ++j) {
    levels.count[j] = 3 + j;
    levels.half_range[j] = 1.f + .5f * static_cast<float>(j);
  }
  Buffer x(dtype, 14 * 3), quantized(dtype, 14 * 3), grad(DType::kFloat, 14 * 3), grad_x(dtype, 14 * 3);
  std::vector<int64_t> indices(14);
  const LevelRows level_rows{x.random().data(), 21, 3, 1, frames};
  check(fsq_quantize(dtype, level_rows, levels, quantized.nan().data(), indices.data(), nullptr), "fsq_quantize");
  quantized.expect_finite("quantized");
  check(fsq_gradient(dtype, level_rows, levels, grad.random().floats(), grad_x.nan().data(), nullptr), "fsq_gradient");
  grad_x.expect_finite("grad_x");
  check(fsq_dequantize(dtype, indices.data(), 14, 60, levels, quantized.nan().data(), nullptr), "fsq_dequantize");
  quantized.expect_finite("dequantized");
  for (const int bits : {8, 4}) {
    Buffer values(dtype, 9 * columns), scale(DType::kFloat, 9), offset(DType::kFloat, 9);
    std::vector<uint8_t> packed(9 * (bits == 8 ? columns : (columns + 1) / 2));
    check(affine_quantize(dtype, values.random().data(), 9, columns, columns, bits, packed.data(), scale.nan().floats(),
                          offset.nan().floats(), nullptr),
          "affine_quantize");
    const std::vector<double> wide_scale(scale.floats(), scale.floats() + 9);
    const std::vector<double> wide_offset(offset.floats(), offset.floats() + 9);
    check(affine_dequantize(dtype, packed.data(), wide_scale.data(), wide_offset.data(), 9, columns, bits,
                            values.nan().data(), nullptr),
          "affine_dequantize");
    values.expect_finite("affine values");
  }
}

}  // namespace

void quantize(DType dtype, DType other) {
  search(dtype, other, 9, 5, 70, 0);  // two float16 to a number
  search(dtype, dtype, 33, 35, 70, 1);
  search(dtype, dtype, 3, 131, 40, 3);  // the wide tiles
  levels_and_integers(dtype, 37);
}

}  // namespace launches
