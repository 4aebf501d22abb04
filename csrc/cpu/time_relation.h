// What the algorithms of the time-relation loss on the CPU share: one clip's rows, scratch memory and matrix products.
// R is the type products are taken in: float (also for half precision) or double.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <type_traits>
#include <vector>

#include "cpu/isa.h"
#include "cpu/simd/time_relation.h"

namespace losatok::relation {

template <class R>
constexpr R kEps = R(1e-12);  // as torch.nn.functional.normalize

// Rows with a smaller 1 / norm are shortened first: products of two such rows, or 1 / norm squared, could leave the
// range of R.
template <class R>
constexpr R kLeastInverse = std::is_same_v<R, double> ? R(1e-150) : R(1e-18);

// A copy of rows in which those that are too long are divided by a power of two. That loses no digit; the other rows
// are unchanged.
struct Shortened {
  at::Tensor rows;             // [frames, columns], packed
  std::vector<int> exponents;  // row i was divided by 2^exponents[i]
};

// Looks at 1 / max(norm, eps) of the first `frames` of `rows` [T, columns]; nothing where none is too long. A row that
// holds an infinity or NaN stays as it is.
template <class R>
std::optional<Shortened> shortened(const at::Tensor& rows, int64_t frames, const R* inverse);

// Memory that grows when needed and serves again for the next tile or clip.
template <class R>
class Scratch {
 public:
  R* reserve(int64_t count) {
    if (!buffer_.defined() || buffer_.numel() < count) {
      buffer_ = at::Tensor();  // let go of the old one first
      buffer_ = at::empty({count}, c10::CppTypeToScalarType<R>::value);
    }
    return buffer_.template mutable_data_ptr<R>();
  }

 private:
  at::Tensor buffer_;
};

// What one worker keeps between clips.
template <class R>
struct Workspace {
  Scratch<R> unit, inverse_low, inverse_high, converted[2], low_gram, high_gram, scaled, left, right, grad;
  Scratch<c10::BFloat16> high_gram_bfloat16;
  Scratch<double> wide, wide_square;
  std::vector<Workspace> helpers;  // of the other workers inside one clip
};

// A view of a matrix in memory, as an operand of a product.
template <class R>
struct Matrix {
  R* data;
  int64_t rows, columns, row_stride, column_stride = 1;

  Matrix transposed() const { return {data, columns, rows, column_stride, row_stride}; }
};

template <class R>
Matrix<const R> packed(const R* data, int64_t rows, int64_t columns) {
  return {data, rows, columns, columns};
}

template <class R>
Matrix<R> packed(R* data, int64_t rows, int64_t columns) {
  return {data, rows, columns, columns};
}

// out = a b, or out += a b. Called below the dispatcher: autocast must not touch the operands.
template <class R>
void product(const Matrix<const R>& a, const Matrix<const R>& b, const Matrix<R>& out, bool accumulate = false);

// The teacher's features of one clip, [frames, size].
template <class R>
class Features {
 public:
  // `bfloat16_products`: gram() multiplies in bfloat16; `clip` [T, size] then is bfloat16 with contiguous rows.
  Features(Workspace<R>& own, const at::Tensor& clip, int64_t frames, bool bfloat16_products);

  // Rows begin.. in R: where they lie when the tensor holds them so, else converted. `which` (0 or 1) tells apart two
  // blocks that are in use at once.
  Matrix<const R> rows(int64_t begin, int64_t count, int which = 0);

  // 1 / max(norm, eps) of every row.
  void inverse_norms(R* inverse);

  // Rows i times rows j transposed, without the norms, packed: in R or, with bfloat16 products, in bfloat16.
  const R* gram(int64_t i, int64_t count_i, int64_t j, int64_t count_j);
  const Bf16* gram_bfloat16(int64_t i, int64_t count_i, int64_t j, int64_t count_j);

  int64_t frames() const { return frames_; }
  int64_t size() const { return clip_.size(1); }
  bool bfloat16_products() const { return bfloat16_products_; }

 private:
  Workspace<R>& own_;
  at::Tensor clip_;
  int64_t frames_;
  bool bfloat16_products_;
  const R* in_place_ = nullptr;
  int64_t stride_ = 0;
};

// One clip as the algorithms see it.
template <class R>
struct Clip {
  at::Tensor high;         // [T, D]
  bool bfloat16_products;  // of high's rows among themselves
  int64_t frames;          // at least 1
  int64_t window;          // |i - j| <= window counts; at most frames
  const R* unit;           // low's rows, normalised [frames, d]; null for the energy alone
  int64_t low_size;        // d
  const R* inverse_low;    // 1 / max(norm, eps) of low's rows
  const R* inverse_high;   // and of high's
};

// Rows of a panel of tiles. Fewer save more by symmetry, and next to a narrow band, but make the products less
// efficient.
int64_t panel_rows(int64_t frames, int64_t window);

// Going over the Gram matrix in tiles, those of the band only. Returns the sum over the pairs that count of
// (l_i.l_j - h_i.h_j)^2, or without `unit` of (h_i.h_j)^2. `grad` [frames, d], when not null, is filled with
// scale * inverse_low * (G - l (l.G)), G_i = sum_j (l_i.l_j - h_i.h_j) l_j. Uses threads when called outside a parallel
// region.
template <class R>
double tiled(Workspace<R>& own, const Clip<R>& clip, R scale, R* grad);

// The same sum, from ||L^T L||^2 - 2 ||L^T H||^2 + energy, where G = L (L^T L) - H (H^T L). All pairs count.
template <class R>
double factored(Workspace<R>& own, const Clip<R>& clip, double energy, R scale, R* grad);

// Sum over all pairs of (h_i.h_j)^2 as ||H^T H||^2.
template <class R>
double energy_over_features(Workspace<R>& own, const Clip<R>& clip);

}  // namespace losatok::relation
