#include "cpu/simd/time_relation.h"

#include <cmath>

namespace losatok::LOSATOK_ISA {
namespace {

struct Span {
  int64_t begin, once,
      end;  // columns that count: [begin, once) stand for themselves, [once, end) also for their mirrors
};

inline int64_t clamped(int64_t x, int64_t low, int64_t high) { return x < low ? low : x > high ? high : x; }

template <class R>
inline void zero(R* x, int64_t begin, int64_t end) {
  for (int64_t j = begin; j < end; ++j) x[j] = R(0);
}

inline Span span_of_row(const GramTile& tile, int64_t row) {
  const int64_t diagonal = row - tile.offset;  // the column where i == j
  const int64_t begin = clamped(diagonal - tile.window, 0, tile.columns);
  const int64_t end = clamped(diagonal + tile.window + 1, 0, tile.columns);
  return {begin, clamped(tile.once, begin, end), end};
}

template <class R, class H>
inline R subtract(R* low, const H* high, const R* inverse_j, R factor, int64_t begin, int64_t end) {
  R sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = begin; j < end; ++j) {
    const R e = low[j] - factor * inverse_j[j] * load(high[j]);
    low[j] = e;
    sum += e * e;
  }
  return sum;
}

template <class R, class H>
inline R squares(const H* high, const R* inverse_j, R factor, int64_t begin, int64_t end) {
  R sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = begin; j < end; ++j) {
    const R g = factor * inverse_j[j] * load(high[j]);
    sum += g * g;
  }
  return sum;
}

}  // namespace

template <class R>
void unit_rows(const R* x, int64_t rows, int64_t columns, int64_t stride, R eps, R* out, R* inverse) {
  for (int64_t i = 0; i < rows; ++i) {
    const R* row = x + i * stride;
    R sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < columns; ++j) sum += row[j] * row[j];
    const R norm = std::sqrt(sum);
    const R factor = R(1) / (norm < eps ? eps : norm);  // written so that a NaN stays one
    inverse[i] = factor;
    if (!out) continue;
    R* to = out + i * columns;
    for (int64_t j = 0; j < columns; ++j) to[j] = row[j] * factor;
  }
}

template <class R>
void scaled_rows(const R* x, int64_t rows, int64_t columns, int64_t stride, const R* factor, R* out) {
  for (int64_t i = 0; i < rows; ++i) {
    const R* row = x + i * stride;
    R* to = out + i * columns;
    const R f = factor[i];
    for (int64_t j = 0; j < columns; ++j) to[j] = row[j] * f;
  }
}

template <class R, class H>
double gram_difference(R* low, const H* high, const GramTile& tile, const R* inverse_i, const R* inverse_j) {
  double total = 0;
  for (int64_t i = 0; i < tile.rows; ++i, low += tile.columns, high += tile.columns) {
    const Span span = span_of_row(tile, i);
    zero(low, 0, span.begin);
    total += subtract(low, high, inverse_j, inverse_i[i], span.begin, span.once);
    total += 2. * subtract(low, high, inverse_j, inverse_i[i], span.once, span.end);
    zero(low, span.end, tile.columns);
  }
  return total;
}

template <class R, class H>
double gram_squares(const H* high, const GramTile& tile, const R* inverse_i, const R* inverse_j) {
  double total = 0;
  for (int64_t i = 0; i < tile.rows; ++i, high += tile.columns) {
    const Span span = span_of_row(tile, i);
    total += squares(high, inverse_j, inverse_i[i], span.begin, span.once);
    total += 2. * squares(high, inverse_j, inverse_i[i], span.once, span.end);
  }
  return total;
}

template <class R>
void add_to_double(const R* x, int64_t count, double* sum) {
  for (int64_t i = 0; i < count; ++i) sum[i] += static_cast<double>(x[i]);
}

template <class R>
double sum_of_squares(const R* x, int64_t count) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return sum;
}

template <class R>
void through_normalization(const R* g, const R* h, const R* factor, const R* unit, const R* inverse, R eps,
                           int64_t rows, int64_t columns, R scale, R* out) {
  for (int64_t i = 0; i < rows; ++i, g += columns, unit += columns, out += columns) {
    const R f = h ? factor[i] : R(0);
    const R* from = h ? h + i * columns : g;
    R along = 0;
#pragma omp simd reduction(+ : along)
    for (int64_t j = 0; j < columns; ++j) along += unit[j] * (g[j] - f * from[j]);
    if (inverse[i] >= R(1) / eps) along = 0;  // clamped: the norm has no part in the gradient
    const R s = scale * inverse[i];
#pragma omp simd
    for (int64_t j = 0; j < columns; ++j) out[j] = s * ((g[j] - f * from[j]) - unit[j] * along);
  }
}

#define LOSATOK_INSTANTIATE(R)                                                              \
  template void unit_rows<R>(const R*, int64_t, int64_t, int64_t, R, R*, R*);               \
  template void scaled_rows<R>(const R*, int64_t, int64_t, int64_t, const R*, R*);          \
  template double gram_difference<R, R>(R*, const R*, const GramTile&, const R*, const R*); \
  template double gram_squares<R, R>(const R*, const GramTile&, const R*, const R*);        \
  template void add_to_double<R>(const R*, int64_t, double*);                               \
  template double sum_of_squares<R>(const R*, int64_t);                                     \
  template void through_normalization<R>(const R*, const R*, const R*, const R*, const R*, R, int64_t, int64_t, R, R*);
LOSATOK_INSTANTIATE(float)
LOSATOK_INSTANTIATE(double)
#undef LOSATOK_INSTANTIATE
template double gram_difference<float, Bf16>(float*, const Bf16*, const GramTile&, const float*, const float*);
template double gram_squares<float, Bf16>(const Bf16*, const GramTile&, const float*, const float*);

}  // namespace losatok::LOSATOK_ISA
