#include "cpu/simd/dit_attention.h"

#include <cmath>
#include <limits>

// Vectors of 64 bytes only pass between inlined functions of this file, where no calling convention matters.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace losatok::LOSATOK_ISA {
namespace {

// e^(x - shift) for x not far above shift, as 2^n times a minimax polynomial on [-1/2, 1/2]: relative error 2e-9, or
// 3e-6 where bfloat16 follows. Below 2^-126 it stays there; NaN stays NaN. `shift` comes in
// units of kShiftUnit.
template <class P>
inline float exponential(float x, float shift) {
  float t = x * kShiftUnit<float> - shift;
  t = t < -126.f ? -126.f : t;
  const float magic = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer, held in the low bits
  const float shifted = t + magic;
  const float r = t - (shifted - magic);
  float p;
  if constexpr (sizeof(P) == 2) {
    p = 0.009582853f;
    p = p * r + 0.055906426f;
    p = p * r + 0.24024099f;
    p = p * r + 0.6931242f;
  } else {
    p = 0.00015353362f;
    p = p * r + 0.0013398875f;
    p = p * r + 0.009618437f;
    p = p * r + 0.055503324f;
    p = p * r + 0.24022648f;
    p = p * r + 0.6931472f;
  }
  p = p * r + 1.f;
  uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + 0x3f800000u;
  float scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return p * scale;
}
template <class P>
inline double exponential(double x, double shift) {
  return std::exp(x - shift);
}

// Mean and 1 / sqrt(variance + eps) of a head (the mean 0 for "rms"); 0 and 1 without a norm.
template <class X, class W>
inline void statistics(const X* x, const HeadTransform<W>& transform, W* mean, W* inverse) {
  const int64_t size = transform.size;
  *mean = W(0);
  *inverse = W(1);
  if (transform.norm == HeadNorm::kNone) return;
  W sum = 0, squares = 0;
  if (transform.norm == HeadNorm::kLayer) {
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < size; ++j) sum += load(x[j]);
    *mean = sum / static_cast<W>(size);
  }
  const W m = *mean;
#pragma omp simd reduction(+ : squares)
  for (int64_t j = 0; j < size; ++j) {
    const W value = load(x[j]) - m;
    squares += value * value;
  }
  *inverse = W(1) / std::sqrt(squares / static_cast<W>(size) + transform.eps);
}

// Turns the pairs of a head by the angles of one frame, in place; backward by their negatives.
template <class W>
inline void rotate(W* x, const HeadTransform<W>& transform, int64_t frame, W direction) {
  const int64_t pairs = transform.pairs;
  const W *cos = transform.cos + frame * pairs, *sin = transform.sin + frame * pairs;
  if (transform.interleaved) {
#pragma omp simd
    for (int64_t i = 0; i < pairs; ++i) {
      const W a = x[2 * i], b = x[2 * i + 1], c = cos[i], s = direction * sin[i];
      x[2 * i] = a * c - b * s;
      x[2 * i + 1] = b * c + a * s;
    }
  } else {
#pragma omp simd
    for (int64_t i = 0; i < pairs; ++i) {
      const W a = x[i], b = x[pairs + i], c = cos[i], s = direction * sin[i];
      x[i] = a * c - b * s;
      x[pairs + i] = b * c + a * s;
    }
  }
}

// out [columns, width] = x [rows, columns]^T, in squares that fit the first cache.
template <class T>
inline void transpose_squares(const T* x, int64_t rows, int64_t columns, int64_t width, T* out) {
  constexpr int64_t kSquare = 16;
  for (int64_t r0 = 0; r0 < width; r0 += kSquare)
    for (int64_t c0 = 0; c0 < columns; c0 += kSquare)
      for (int64_t c = c0; c < c0 + kSquare && c < columns; ++c)
        for (int64_t r = r0; r < r0 + kSquare && r < width; ++r)
          out[c * width + r] = r < rows ? x[r * columns + c] : T{};
}

}  // namespace

template <class X, class P>
void transform_heads(const X* x, int64_t stride, int64_t rows, const HeadTransform<wide_t<X>>& transform, int64_t frame,
                     P* out) {
  using W = wide_t<X>;
  const int64_t size = transform.size;
  W head[kMaxHead];
  for (int64_t i = 0; i < rows; ++i, x += stride, out += transform.padded) {
    W mean, inverse;
    statistics(x, transform, &mean, &inverse);
    const W factor = inverse * transform.scale;
    if (transform.weight) {
#pragma omp simd
      for (int64_t j = 0; j < size; ++j) head[j] = (load(x[j]) - mean) * factor * transform.weight[j];
    } else {
#pragma omp simd
      for (int64_t j = 0; j < size; ++j) head[j] = (load(x[j]) - mean) * factor;
    }
    if (transform.cos) rotate(head, transform, frame + i, W(1));
#pragma omp simd
    for (int64_t j = 0; j < size; ++j) store(out + j, head[j]);
    for (int64_t j = size; j < transform.padded; ++j) out[j] = P{};
  }
}

template <class X>
void transform_heads_backward(const X* x, int64_t stride, int64_t rows, const HeadTransform<wide_t<X>>& transform,
                              int64_t frame, const wide_t<X>* grad, X* out, int64_t out_stride,
                              wide_t<X>* weight_grad) {
  using W = wide_t<X>;
  const int64_t size = transform.size;
  W g[kMaxHead], normal[kMaxHead];
  for (int64_t i = 0; i < rows; ++i, x += stride, grad += transform.padded, out += out_stride) {
#pragma omp simd
    for (int64_t j = 0; j < size; ++j) g[j] = grad[j] * transform.scale;
    if (transform.cos) rotate(g, transform, frame + i, W(-1));
    if (transform.norm == HeadNorm::kNone) {
#pragma omp simd
      for (int64_t j = 0; j < size; ++j) store(out + j, g[j]);
      continue;
    }
    W mean, inverse;
    statistics(x, transform, &mean, &inverse);
#pragma omp simd
    for (int64_t j = 0; j < size; ++j) normal[j] = (load(x[j]) - mean) * inverse;
    if (transform.weight) {
#pragma omp simd
      for (int64_t j = 0; j < size; ++j) {
        if (weight_grad) weight_grad[j] += g[j] * normal[j];
        g[j] *= transform.weight[j];
      }
    }
    // The mean gradient, and its part along the normalised head: neither moves the head.
    W along = 0, total = 0;
#pragma omp simd reduction(+ : along, total)
    for (int64_t j = 0; j < size; ++j) {
      along += g[j] * normal[j];
      total += g[j];
    }
    along /= static_cast<W>(size);
    total = transform.norm == HeadNorm::kLayer ? total / static_cast<W>(size) : W(0);
#pragma omp simd
    for (int64_t j = 0; j < size; ++j) store(out + j, inverse * (g[j] - total - normal[j] * along));
  }
}

template <class X, class P>
void copy_heads(const X* x, int64_t stride, int64_t rows, int64_t size, int64_t padded, P* out, int64_t out_stride) {
  for (int64_t i = 0; i < rows; ++i, x += stride, out += out_stride) {
#pragma omp simd
    for (int64_t j = 0; j < size; ++j) store(out + j, load(x[j]));
    for (int64_t j = size; j < padded; ++j) out[j] = P{};
  }
}

template <class P>
void transpose(const P* x, int64_t rows, int64_t columns, int64_t width, P* out) {
  transpose_squares(x, rows, columns, width, out);
}

void transpose_pairs(const Bf16* x, int64_t rows, int64_t columns, int64_t width, Bf16* out) {
  struct Pair {
    Bf16 first, second;
  };
  transpose_squares(reinterpret_cast<const Pair*>(x), rows, columns / 2, width, reinterpret_cast<Pair*>(out));
}

void pair_rows(const Bf16* x, int64_t rows, int64_t columns, int64_t height, Bf16* out) {
  for (int64_t i = 0; i < height; i += 2, out += 2 * columns) {
    const Bf16 *first = x + i * columns, *second = first + columns;
    if (i + 1 < rows) {
#pragma omp simd
      for (int64_t j = 0; j < columns; ++j) {
        out[2 * j] = first[j];
        out[2 * j + 1] = second[j];
      }
    } else {
      for (int64_t j = 0; j < columns; ++j) {
        out[2 * j] = i < rows ? first[j] : Bf16{};
        out[2 * j + 1] = Bf16{};
      }
    }
  }
}

void multiply_f64(int64_t m, int64_t n, int64_t k, const double* a, const double* b, double* c, bool add) {
  typedef double Vector __attribute__((vector_size(64), aligned(8), may_alias));
  constexpr int64_t kRows = 4, kLanes = 8;
  for (int64_t i = 0; i < m; i += kRows) {
    const int64_t rows = m - i < kRows ? m - i : kRows;
    for (int64_t j = 0; j < n; j += kLanes) {
      Vector sums[kRows] = {};
      for (int64_t l = 0; l < k; ++l) {
        const Vector right = *reinterpret_cast<const Vector*>(b + l * n + j);
        for (int64_t r = 0; r < kRows; ++r) sums[r] += a[(i + (r < rows ? r : 0)) * k + l] * right;
      }
      for (int64_t r = 0; r < rows; ++r) {
        Vector* to = reinterpret_cast<Vector*>(c + (i + r) * n + j);
        *to = add ? *to + sums[r] : sums[r];
      }
    }
  }
}

template <class P>
void softmax_block(wide_t<P>* scores, int64_t rows, int64_t keys, int64_t width, bool first, wide_t<P>* maxima,
                   wide_t<P>* sums, wide_t<P>* acc, int64_t columns, P* weights) {
  using W = wide_t<P>;
  for (int64_t i = 0; i < rows; ++i, scores += width, weights += width, acc += columns) {
    W most = first ? -std::numeric_limits<W>::infinity() : maxima[i];
    const W before = most;
#pragma omp simd reduction(max : most)
    for (int64_t j = 0; j < keys; ++j) most = scores[j] > most ? scores[j] : most;
    const W shift = most * kShiftUnit<W>;
    W sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < keys; ++j) {
      const W weight = exponential<P>(scores[j], shift);
      sum += weight;
      store(weights + j, weight);
    }
    for (int64_t j = keys; j < width; ++j) weights[j] = P{};
    if (first) {
      sums[i] = sum;
    } else {
      const W factor = exponential<W>(before, shift);
      sums[i] = sums[i] * factor + sum;
      if (most > before) {
#pragma omp simd
        for (int64_t j = 0; j < columns; ++j) acc[j] *= factor;
      }
    }
    maxima[i] = most;
  }
}

template <class X>
void finish_heads(const wide_t<X>* acc, int64_t rows, int64_t size, int64_t padded, const wide_t<X>* maxima,
                  const wide_t<X>* sums, X* out, int64_t stride, wide_t<X>* lse) {
  using W = wide_t<X>;
  for (int64_t i = 0; i < rows; ++i, acc += padded, out += stride) {
    const W inverse = W(1) / sums[i];
#pragma omp simd
    for (int64_t j = 0; j < size; ++j) store(out + j, acc[j] * inverse);
    lse[i] = maxima[i] + std::log(sums[i]);
  }
}

template <class X>
void head_products(const X* a, int64_t a_stride, const X* b, int64_t b_stride, int64_t rows, int64_t size,
                   wide_t<X>* out) {
  for (int64_t i = 0; i < rows; ++i, a += a_stride, b += b_stride) {
    wide_t<X> sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < size; ++j) sum += load(a[j]) * load(b[j]);
    out[i] = sum;
  }
}

template <class P>
void softmax_block_backward(const wide_t<P>* scores, const wide_t<P>* value_products, int64_t keys, int64_t height,
                            int64_t queries, const wide_t<P>* shifts, const wide_t<P>* delta, P* weights, P* gradients,
                            P* gradient_pairs) {
  using W = wide_t<P>;
  for (int64_t i = 0; i < keys; ++i) {
    const int64_t row = i * queries;
    P* pairs = gradient_pairs + (i / 2) * 2 * queries + i % 2;
#pragma omp simd
    for (int64_t j = 0; j < queries; ++j) {
      const W weight = exponential<P>(scores[row + j], shifts[j]);
      const W gradient = weight * (value_products[row + j] - delta[j]);
      store(weights + row + j, weight);
      store(gradients + row + j, gradient);
      if constexpr (sizeof(P) == 2) store(pairs + 2 * j, gradient);
    }
  }
  for (int64_t i = keys * queries; i < height * queries; ++i) weights[i] = gradients[i] = P{};
  if constexpr (sizeof(P) == 2) {
    for (int64_t i = keys; i < height; ++i)
      for (int64_t j = 0; j < queries; ++j) gradient_pairs[(i / 2) * 2 * queries + 2 * j + i % 2] = P{};
  }
}

#define LOSATOK_INSTANTIATE(X)                                                                                       \
  template void transform_heads_backward<X>(const X*, int64_t, int64_t, const HeadTransform<wide_t<X>>&, int64_t,    \
                                            const wide_t<X>*, X*, int64_t, wide_t<X>*);                              \
  template void transpose<X>(const X*, int64_t, int64_t, int64_t, X*);                                               \
  template void softmax_block<X>(wide_t<X>*, int64_t, int64_t, int64_t, bool, wide_t<X>*, wide_t<X>*, wide_t<X>*,    \
                                 int64_t, X*);                                                                       \
  template void finish_heads<X>(const wide_t<X>*, int64_t, int64_t, int64_t, const wide_t<X>*, const wide_t<X>*, X*, \
                                int64_t, wide_t<X>*);                                                                \
  template void head_products<X>(const X*, int64_t, const X*, int64_t, int64_t, int64_t, wide_t<X>*);                \
  template void softmax_block_backward<X>(const wide_t<X>*, const wide_t<X>*, int64_t, int64_t, int64_t,             \
                                          const wide_t<X>*, const wide_t<X>*, X*, X*, X*);
LOSATOK_INSTANTIATE(float)
LOSATOK_INSTANTIATE(double)
LOSATOK_INSTANTIATE(Bf16)
#undef LOSATOK_INSTANTIATE

#define LOSATOK_INSTANTIATE(X, P)                                                                                \
  template void transform_heads<X, P>(const X*, int64_t, int64_t, const HeadTransform<wide_t<X>>&, int64_t, P*); \
  template void copy_heads<X, P>(const X*, int64_t, int64_t, int64_t, int64_t, P*, int64_t);
LOSATOK_INSTANTIATE(float, float)
LOSATOK_INSTANTIATE(double, double)
LOSATOK_INSTANTIATE(Bf16, Bf16)
LOSATOK_INSTANTIATE(Bf16, float)
template void copy_heads<float, Bf16>(const float*, int64_t, int64_t, int64_t, int64_t, Bf16*, int64_t);
#undef LOSATOK_INSTANTIATE

}  // namespace losatok::LOSATOK_ISA
