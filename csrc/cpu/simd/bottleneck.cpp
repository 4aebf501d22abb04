#include "cpu/simd/bottleneck.h"

#include <cmath>
#include <limits>
#include <type_traits>

#include "cpu/simd/activation.h"

namespace losatok::LOSATOK_ISA {
namespace {  // nothing here may be shared between instruction sets by the linker

constexpr double kNormEps = 1e-12;

// Holds the square of every finite W.
template <class W>
using wider_t = std::conditional_t<std::is_same_v<W, float>, double, long double>;

// One row of cosine_rows, computed in W; adds to `total`. Where W is the usual type of T and a sum of squares
// overflows, it writes nothing and returns false: the row is then computed in a wider W.
template <class W, class T, class U>
inline bool cosine_row(T* r, const U* t, bool grad, wide_t<T>* column_sums, int64_t columns, double* total) {
  W rr = 0, tt = 0, rt = 0;
#pragma omp simd reduction(+ : rr, tt, rt)
  for (int64_t j = 0; j < columns; ++j) {
    const W a = W(load(r[j])), b = W(load(t[j]));
    rr += a * a;
    tt += b * b;
    rt += a * b;
  }
  constexpr W kMost = std::numeric_limits<W>::max();
  if (std::is_same_v<W, wide_t<T>> && !(rr <= kMost && tt <= kMost)) return false;
  const W eps = W(kNormEps), r_norm = std::sqrt(rr), t_norm = std::sqrt(tt);
  const W r_inverse = W(1) / (r_norm < eps ? eps : r_norm), t_inverse = W(1) / (t_norm < eps ? eps : t_norm);
  W squares = 0;
#pragma omp simd reduction(+ : squares)
  for (int64_t j = 0; j < columns; ++j) {
    const W difference = W(load(r[j])) * r_inverse - W(load(t[j])) * t_inverse;
    squares += difference * difference;
  }
  *total += static_cast<double>(squares);
  if (!grad) return true;
  // With a = r / |r|, b = t / |t|: the gradient is ((a - b) - a (a . (a - b))) / |r| = (a (a . b) - b) / |r|. Below
  // eps the divisor is the constant eps, and the gradient (a - b) / eps.
  const W cosine = r_norm < eps ? W(1) : rt * r_inverse * t_inverse;
  const W r_factor = cosine * r_inverse * r_inverse, t_factor = t_inverse * r_inverse;
#pragma omp simd
  for (int64_t j = 0; j < columns; ++j) {
    const auto gradient = static_cast<wide_t<T>>(W(load(r[j])) * r_factor - W(load(t[j])) * t_factor);
    store(r + j, gradient);
    column_sums[j] += gradient;
  }
  return true;
}

template <class T, class U>
double cosine_rows(T* restored, const U* const* target, bool grad, wide_t<T>* column_sums, int64_t rows,
                   int64_t columns) {
  using W = wide_t<T>;
  double total = 0;
  for (int64_t i = 0; i < rows; ++i) {
    T* r = restored + i * columns;
    if (!cosine_row<W>(r, target[i], grad, column_sums, columns, &total))
      cosine_row<wider_t<W>>(r, target[i], grad, column_sums, columns, &total);
  }
  return total;
}

}  // namespace

template <class T>
void activate(Activation activation, const T* x, const T* bias, T* pre, T* out, int64_t rows, int64_t columns) {
  using W = wide_t<T>;
  by_activation(activation, [&]<Activation A>() {
    for (int64_t i = 0; i < rows; ++i) {
      const T* row = x + i * columns;
      T* kept = pre ? pre + i * columns : nullptr;
      T* to = out + i * columns;
      if (bias || kept) {
#pragma omp simd
        for (int64_t j = 0; j < columns; ++j) {
          W value = load(row[j]), derivative;
          if (bias) value += load(bias[j]);
          if (kept) store(kept + j, value);
          evaluate<A, T>(value, &value, &derivative);
          store(to + j, value);
        }
      } else {
#pragma omp simd
        for (int64_t j = 0; j < columns; ++j) {
          W value, derivative;
          evaluate<A, T>(load(row[j]), &value, &derivative);
          store(to + j, value);
        }
      }
    }
  });
}

template <class T>
void activate_backward(Activation activation, const T* pre, T* grad, T* out, wide_t<T>* column_sums, int64_t rows,
                       int64_t columns) {
  using W = wide_t<T>;
  by_activation(activation, [&]<Activation A>() {
    for (int64_t i = 0; i < rows; ++i) {
      const T* row = pre + i * columns;
      T* gradient = grad + i * columns;
      T* to = out + i * columns;
#pragma omp simd
      for (int64_t j = 0; j < columns; ++j) {
        W value, derivative;
        evaluate<A, T>(load(row[j]), &value, &derivative);
        const W product = load(gradient[j]) * derivative;
        store(to + j, value);
        store(gradient + j, product);
        column_sums[j] += product;
      }
    }
  });
}

template <class T>
double cosine(T* restored, const T* const* target, bool grad, wide_t<T>* column_sums, int64_t rows, int64_t columns) {
  return cosine_rows(restored, target, grad, column_sums, rows, columns);
}

double cosine_to_float(Bf16* restored, const float* const* target, bool grad, float* column_sums, int64_t rows,
                       int64_t columns) {
  return cosine_rows(restored, target, grad, column_sums, rows, columns);
}

void accumulate(const Bf16* x, float* sum, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) sum[i] += load(x[i]);
}

#define LOSATOK_INSTANTIATE(T)                                                                    \
  template void activate<T>(Activation, const T*, const T*, T*, T*, int64_t, int64_t);            \
  template void activate_backward<T>(Activation, const T*, T*, T*, wide_t<T>*, int64_t, int64_t); \
  template double cosine<T>(T*, const T* const*, bool, wide_t<T>*, int64_t, int64_t);
LOSATOK_INSTANTIATE(float)
LOSATOK_INSTANTIATE(double)
LOSATOK_INSTANTIATE(Bf16)

}  // namespace losatok::LOSATOK_ISA
