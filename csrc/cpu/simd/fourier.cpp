// A row of n real samples is transformed as n / 2 complex values by passes of mixed radix in order (Stockham's scheme:
// each pass reads one buffer and writes the other, and no reordering is left over).
#include "cpu/simd/fourier.h"

#include <algorithm>

#include "cpu/simd/vectors.h"

namespace losatok::LOSATOK_ISA {
namespace {

template <class W>
struct Complex {  // of kLanes rows
  Vector<W> re, im;
};

template <class W>
inline Complex<W> operator+(const Complex<W>& a, const Complex<W>& b) {
  return {a.re + b.re, a.im + b.im};
}
template <class W>
inline Complex<W> operator-(const Complex<W>& a, const Complex<W>& b) {
  return {a.re - b.re, a.im - b.im};
}
template <class W>
inline Complex<W> operator*(const Complex<W>& a, W factor) {
  return {a.re * factor, a.im * factor};
}
template <class W>
inline Complex<W> times_i(const Complex<W>& a) {
  return {-a.im, a.re};
}
template <class W>
inline Complex<W> conjugate(const Complex<W>& a) {
  return {a.re, -a.im};
}
// a times the complex number at `turn`
template <class W>
inline Complex<W> turned(const Complex<W>& a, const W* turn) {
  return {a.re * turn[0] - a.im * turn[1], a.im * turn[0] + a.re * turn[1]};
}

// out[u] = sum over t of a[t] e^(2 pi i t u / P), in place.
template <class W>
inline void transform(Complex<W> (&a)[2]) {
  const Complex<W> first = a[0];
  a[0] = first + a[1];
  a[1] = first - a[1];
}
template <class W>
inline void transform(Complex<W> (&a)[3]) {
  const W sine = static_cast<W>(0.86602540378443864676);
  const Complex<W> sum = a[1] + a[2], middle = a[0] - sum * W(0.5), side = times_i(a[1] - a[2]) * sine;
  a[0] = a[0] + sum;
  a[1] = middle + side;
  a[2] = middle - side;
}
template <class W>
inline void transform(Complex<W> (&a)[4]) {
  const Complex<W> even = a[0] + a[2], odd = a[1] + a[3], middle = a[0] - a[2], side = times_i(a[1] - a[3]);
  a[0] = even + odd;
  a[1] = middle + side;
  a[2] = even - odd;
  a[3] = middle - side;
}
template <class W>
inline void transform(Complex<W> (&a)[5]) {
  const W cos1 = static_cast<W>(0.30901699437494742410), cos2 = static_cast<W>(-0.80901699437494742410);
  const W sin1 = static_cast<W>(0.95105651629515357212), sin2 = static_cast<W>(0.58778525229247312917);
  const Complex<W> sum1 = a[1] + a[4], sum2 = a[2] + a[3], difference1 = a[1] - a[4], difference2 = a[2] - a[3];
  const Complex<W> middle1 = a[0] + sum1 * cos1 + sum2 * cos2, middle2 = a[0] + sum1 * cos2 + sum2 * cos1;
  const Complex<W> side1 = times_i(difference1 * sin1 + difference2 * sin2);
  const Complex<W> side2 = times_i(difference1 * sin2 - difference2 * sin1);
  a[0] = a[0] + sum1 + sum2;
  a[1] = middle1 + side1;
  a[2] = middle2 + side2;
  a[3] = middle2 - side2;
  a[4] = middle1 - side1;
}

// One pass: transforms of P values, `groups * stride` apart, for each group and each place in a stride.
// A group's results are turned by multiples of its number; turns of that number lie `step` apart.
template <int P, class W>
void pass(const Complex<W>* x, Complex<W>* y, int64_t groups, int64_t stride, const W* turns, int64_t step) {
  for (int64_t q = 0; q < stride; ++q) {  // group 0 is not turned
    Complex<W> a[P];
    for (int t = 0; t < P; ++t) a[t] = x[q + stride * groups * t];
    transform(a);
    for (int u = 0; u < P; ++u) y[q + stride * u] = a[u];
  }
  for (int64_t j = 1; j < groups; ++j) {
    const Complex<W>* from = x + stride * j;
    Complex<W>* to = y + stride * P * j;
    for (int64_t q = 0; q < stride; ++q) {
      Complex<W> a[P];
      for (int t = 0; t < P; ++t) a[t] = from[q + stride * groups * t];
      transform(a);
      to[q] = a[0];
      for (int u = 1; u < P; ++u) to[q + stride * u] = turned(a[u], turns + 2 * step * j * u);
    }
  }
}

// The same for any factor, by its definition; `size` turns make a circle. Sums of a few terms are added up, since the
// error of one long sum would grow with it.
template <class W>
void pass_of_any(int64_t factor, const Complex<W>* x, Complex<W>* y, int64_t groups, int64_t stride, const W* turns,
                 int64_t step, int64_t size) {
  constexpr int64_t kTerms = 16;
  for (int64_t j = 0; j < groups; ++j)
    for (int64_t q = 0; q < stride; ++q)
      for (int64_t u = 0; u < factor; ++u) {
        Complex<W> total{};
        for (int64_t first = 0; first < factor; first += kTerms) {
          Complex<W> sum{};
          for (int64_t t = first; t < std::min(first + kTerms, factor); ++t)
            sum = sum + turned(x[q + stride * (j + groups * t)], turns + 2 * (t * u % factor * (size / factor)));
          total = total + sum;
        }
        y[q + stride * (factor * j + u)] = turned(total, turns + 2 * step * j * u);
      }
}

// The sums over k of x[k] e^(2 pi i j k / half), not scaled: in one of the two buffers, which is returned.
template <class W>
Complex<W>* transform(const FourierTables<W>& tables, Complex<W>* x, Complex<W>* y) {
  int64_t stride = 1;
  for (int64_t i = 0; i < tables.passes; ++i) {
    const int64_t factor = tables.factors[i], groups = tables.half / stride / factor, step = 2 * stride;
    switch (factor) {
      case 2:
        pass<2>(x, y, groups, stride, tables.turns, step);
        break;
      case 3:
        pass<3>(x, y, groups, stride, tables.turns, step);
        break;
      case 4:
        pass<4>(x, y, groups, stride, tables.turns, step);
        break;
      case 5:
        pass<5>(x, y, groups, stride, tables.turns, step);
        break;
      default:
        pass_of_any(factor, static_cast<const Complex<W>*>(x), y, groups, stride, tables.turns, step, 2 * tables.half);
    }
    stride *= factor;
    std::swap(x, y);
  }
  return x;
}

// `count` values of each of `rows` rows, which begin `stride` apart, into the lanes of their own; the others get zeros.
// Values are pairs, of which `first` says which goes to the real part.
template <class W>
void into_lanes(const W* from, int64_t stride, int64_t rows, int64_t count, int first, Complex<W>* to) {
  constexpr int lanes = kLanes<W>;
  W* out = reinterpret_cast<W*>(to);
  for (int64_t k = 0; k < count; ++k, out += 2 * lanes)
    for (int64_t l = 0; l < lanes; ++l) {
      out[l] = l < rows ? from[l * stride + 2 * k + first] : W(0);
      out[lanes + l] = l < rows ? from[l * stride + 2 * k + 1 - first] : W(0);
    }
}

// The reverse, with a factor.
template <class W>
void out_of_lanes(const Complex<W>* from, int64_t stride, int64_t rows, int64_t count, W factor, W* to) {
  constexpr int lanes = kLanes<W>;
  const W* in = reinterpret_cast<const W*>(from);
  for (int64_t k = 0; k < count; ++k, in += 2 * lanes)
    for (int64_t l = 0; l < rows; ++l) {
      to[l * stride + 2 * k] = in[l] * factor;
      to[l * stride + 2 * k + 1] = in[lanes + l] * factor;
    }
}

}  // namespace

// With X the spectrum, z[j] = x[2 j] + i x[2 j + 1] is the transform of Z[k] = E[k] + i O[k], half of them, where
// 2 E[k] = X[k] + conj X[half - k] and 2 O[k] = (X[k] - conj X[half - k]) e^(2 pi i k / n).
template <class W>
void inverse_fourier(const FourierTables<W>& tables, const W* spectra, int64_t rows, W* samples) {
  constexpr int64_t lanes = kLanes<W>;
  const int64_t half = tables.half;
  Complex<W>*const x = reinterpret_cast<Complex<W>*>(tables.work), *const y = x + half + 1;
  for (int64_t row = 0; row < rows; row += lanes) {
    const int64_t count = std::min(lanes, rows - row);
    into_lanes(spectra + row * 2 * (half + 1), 2 * (half + 1), count, half + 1, 0, x);
    x[0].im = x[half].im = Vector<W>{};
    for (int64_t k = 0; k <= half / 2; ++k) {
      const Complex<W> a = x[k], b = conjugate(x[half - k]), sum = a + b;
      const Complex<W> turn = times_i(turned(a - b, tables.turns + 2 * k));
      x[k] = sum + turn;
      if (k > 0) x[half - k] = conjugate(sum - turn);
    }
    out_of_lanes(transform(tables, x, y), 2 * half, count, half, W(1) / static_cast<W>(2 * half),
                 samples + row * 2 * half);
  }
}

// The transform with the opposite sign is that of values whose real and imaginary parts are exchanged.
template <class W>
void forward_fourier(const FourierTables<W>& tables, const W* samples, int64_t rows, W* spectra) {
  constexpr int64_t lanes = kLanes<W>;
  const int64_t half = tables.half;
  Complex<W>*const x = reinterpret_cast<Complex<W>*>(tables.work), *const y = x + half + 1;
  for (int64_t row = 0; row < rows; row += lanes) {
    const int64_t count = std::min(lanes, rows - row);
    into_lanes(samples + row * 2 * half, 2 * half, count, half, 1, x);
    Complex<W>* z = transform(tables, x, y);
    const auto at = [z](int64_t k) { return Complex<W>{z[k].im, z[k].re}; };
    z[half] = z[0];
    for (int64_t k = 0; k <= half / 2; ++k) {
      const Complex<W> a = at(k), b = conjugate(at(half - k)), sum = a + b, difference = a - b;
      const W back[2] = {tables.turns[2 * k], -tables.turns[2 * k + 1]};
      const Complex<W> turn = times_i(turned(difference, back));
      z[k] = sum - turn;
      z[half - k] = conjugate(sum + turn);
    }
    out_of_lanes(z, 2 * (half + 1), count, half + 1, W(0.5), spectra + row * 2 * (half + 1));
  }
}

#define LOSATOK_INSTANTIATE(W)                                                      \
  template void inverse_fourier<W>(const FourierTables<W>&, const W*, int64_t, W*); \
  template void forward_fourier<W>(const FourierTables<W>&, const W*, int64_t, W*);
LOSATOK_INSTANTIATE(float)
LOSATOK_INSTANTIATE(double)
#undef LOSATOK_INSTANTIATE

}  // namespace losatok::LOSATOK_ISA
