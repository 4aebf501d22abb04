// The time-relation loss without Gram matrices over time: ||L L^T - H H^T||^2 = ||L^T L||^2 - 2 ||L^T H||^2 + ||H^T
// H||^2. Products are taken over blocks of time and added up in double, since the three terms nearly cancel when the
// loss is small.
#include <vector>

#include "cpu/time_relation.h"

namespace losatok::relation {
namespace {

constexpr int64_t kBlock = 1024;  // frames of a product; its result is added up in double

int64_t block_frames(int64_t frames) {
  const int64_t blocks = (frames + kBlock - 1) / kBlock;
  return (frames + blocks - 1) / blocks;
}

// A sum of matrices, one per block: kept in double, or where there is one block only, as it is.
template <class R>
class BlockSum {
 public:
  BlockSum(Scratch<R>& one, Scratch<double>& wide, int64_t count, bool single)
      : one_(one.reserve(count)), wide_(single ? nullptr : wide.reserve(count)), count_(count) {
    if (wide_) std::fill_n(wide_, count, 0.);
  }

  R* block() { return one_; }

  void add() {
    if (!wide_) return;
    at::parallel_for(0, count_, 1 << 15, [&](int64_t begin, int64_t end) {
      LOSATOK_SIMD(add_to_double<R>)(one_ + begin, end - begin, wide_ + begin);
    });
  }

  double squares(int64_t begin, int64_t count) const {
    return wide_ ? LOSATOK_SIMD(sum_of_squares<double>)(wide_ + begin, count)
                 : LOSATOK_SIMD(sum_of_squares<R>)(one_ + begin, count);
  }

  // The sum rounded to R.
  const R* rounded() {
    for (int64_t i = 0; wide_ && i < count_; ++i) one_[i] = static_cast<R>(wide_[i]);
    return one_;
  }

 private:
  R* one_;
  double* wide_;
  int64_t count_;
};

}  // namespace

template <class R>
double factored(Workspace<R>& own, const Clip<R>& clip, double energy, R scale, R* grad) {
  const int64_t n = clip.frames, d = clip.low_size, step = block_frames(n);
  Features<R> high(own, clip.high, n, false);
  const int64_t D = high.size();
  BlockSum<R> low_low(own.low_gram, own.wide_square, d * d, step >= n);
  BlockSum<R> low_high(own.high_gram, own.wide, d * D, step >= n);
  for (int64_t begin = 0; begin < n; begin += step) {
    const int64_t count = std::min(step, n - begin);
    const R* unit = clip.unit + begin * d;
    R* scaled = own.scaled.reserve(count * d);  // the norms of high, moved to the smaller operand
    at::parallel_for(0, count, 256, [&](int64_t from, int64_t to) {
      LOSATOK_SIMD(scaled_rows<R>)(unit + from * d, to - from, d, d, clip.inverse_high + begin + from,
                                   scaled + from * d);
    });
    product<R>(packed(unit, count, d).transposed(), packed(unit, count, d), packed(low_low.block(), d, d));
    product<R>(packed<R>(const_cast<const R*>(scaled), count, d).transposed(), high.rows(begin, count),
               packed(low_high.block(), d, D));
    low_low.add();
    low_high.add();
  }
  const double sum = low_low.squares(0, d * d) - 2. * low_high.squares(0, d * D) + energy;
  if (!grad) return sum;

  const Matrix<const R> A = packed(low_low.rounded(), d, d), C = packed(low_high.rounded(), d, D);
  for (int64_t begin = 0; begin < n; begin += step) {
    const int64_t count = std::min(step, n - begin);
    const R* unit = clip.unit + begin * d;
    R *left = own.left.reserve(count * d), *right = own.right.reserve(count * d);
    product<R>(packed(unit, count, d), A, packed(left, count, d));
    product<R>(high.rows(begin, count), C.transposed(), packed(right, count, d));
    at::parallel_for(0, count, 128, [&](int64_t from, int64_t to) {
      LOSATOK_SIMD(through_normalization<R>)(left + from * d, right + from * d, clip.inverse_high + begin + from,
                                             unit + from * d, clip.inverse_low + begin + from, kEps<R>, to - from, d,
                                             scale, grad + (begin + from) * d);
    });
  }
  return sum;
}

template <class R>
double energy_over_features(Workspace<R>& own, const Clip<R>& clip) {
  constexpr int64_t kPanel = 128;
  const int64_t n = clip.frames, step = block_frames(n);
  Features<R> high(own, clip.high, n, false);
  const int64_t D = high.size();
  // Panels of rows c.. of H^T H, from the diagonal to the right, one behind the other.
  std::vector<int64_t> starts{0};
  for (int64_t c = 0; c < D; c += kPanel) starts.push_back(starts.back() + std::min(kPanel, D - c) * (D - c));
  BlockSum<R> gram(own.high_gram, own.wide, starts.back(), step >= n);
  for (int64_t begin = 0; begin < n; begin += step) {
    const int64_t count = std::min(step, n - begin);
    const Matrix<const R> rows = high.rows(begin, count);
    R* scaled = own.scaled.reserve(count * D);
    at::parallel_for(0, count, 64, [&](int64_t from, int64_t to) {
      LOSATOK_SIMD(scaled_rows<R>)(rows.data + from * rows.row_stride, to - from, D, rows.row_stride,
                                   clip.inverse_high + begin + from, scaled + from * D);
    });
    for (int64_t c = 0, p = 0; c < D; c += kPanel, ++p) {
      const int64_t width = std::min(kPanel, D - c);
      product<R>(Matrix<const R>{scaled + c, count, width, D}.transposed(),
                 Matrix<const R>{scaled + c, count, D - c, D}, packed(gram.block() + starts[p], width, D - c));
    }
    gram.add();
  }
  double sum = 0;
  for (int64_t c = 0, p = 0; c < D; c += kPanel, ++p) {
    const int64_t width = std::min(kPanel, D - c), columns = D - c;
    for (int64_t r = 0; r < width; ++r) {
      const int64_t row = starts[p] + r * columns;
      sum += gram.squares(row, width) + 2. * gram.squares(row + width, columns - width);
    }
  }
  return sum;
}

template double factored(Workspace<float>&, const Clip<float>&, double, float, float*);
template double factored(Workspace<double>&, const Clip<double>&, double, double, double*);
template double energy_over_features(Workspace<float>&, const Clip<float>&);
template double energy_over_features(Workspace<double>&, const Clip<double>&);

}  // namespace losatok::relation
