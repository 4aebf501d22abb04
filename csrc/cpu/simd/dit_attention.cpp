#include "cpu/simd/dit_attention.h"

#include <cmath>
#include <limits>

#include "cpu/simd/blocks.h"

namespace losatok::LOSATOK_ISA {
namespace {

typedef uint32_t Bits __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

// To the nearest bfloat16, ties to even, in the low half of each lane. A NaN comes from bfloat16, whose low bits are
// zero here, or from the processor, and rounding keeps it one.
inline Bits rounded(const Floats& v) {
  const Bits bits = (Bits)v;
  return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}
inline void write(Bf16* to, const Floats& v) {
  const Halves half = __builtin_convertvector(rounded(v), Halves);
  std::memcpy(to, &half, sizeof half);
}

template <class V>
inline V greater(const V& a, const V& b) {
  return a > b ? a : b;  // b where a is NaN
}

// e^(x - shift) for x not far above shift, as 2^n times a minimax polynomial on [-1/2, 1/2]: relative error 2e-9, or
// 3e-6 where bfloat16 follows. Below 2^-126 it stays there; NaN stays NaN. `shift` comes in units of kShiftUnit.
template <class P>
inline Floats exponential(const Floats& x, const Floats& shift) {
  Floats t = x * kShiftUnit<float> - shift;
  t = t < -126.f ? Floats{} - 126.f : t;
  const Floats shifted = t + 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer, held in the low bits
  const Floats r = t - (shifted - 12582912.f);
  Floats p;
  if constexpr (sizeof(P) == 2) {
    p = 0.009582853f * r + 0.055906426f;
    p = p * r + 0.24024099f;
    p = p * r + 0.6931242f;
  } else {
    p = 0.00015353362f * r + 0.0013398875f;
    p = p * r + 0.009618437f;
    p = p * r + 0.055503324f;
    p = p * r + 0.24022648f;
    p = p * r + 0.6931472f;
  }
  p = p * r + 1.f;
  return p * (Floats)(((Bits)shifted << 23) + 0x3f800000u);
}
template <class P>
inline Doubles exponential(const Doubles& x, const Doubles& shift) {
  Doubles result;
  for (int l = 0; l < 8; ++l) result[l] = std::exp(x[l] - shift[l]);
  return result;
}

// What serves sums over a head: a copy in W, `padded` long, zero (or `fill`) beyond size.
template <class X, class W>
inline void widen_head(const X* x, int64_t size, int64_t padded, W* head, W fill = W(0)) {
#pragma omp simd
  for (int64_t j = 0; j < size; ++j) head[j] = load(x[j]);
  for (int64_t j = size; j < padded; ++j) head[j] = fill;
}

template <class W>
inline W total(const W* x, int64_t padded) {
  vector_t<W> sums = {};
  for (int64_t j = 0; j < padded; j += kBlock<W>) sums += read<vector_t<W>>(x + j);
  return sum(sums);
}

template <class W>
inline W product(const W* a, const W* b, int64_t padded) {
  vector_t<W> sums = {};
  for (int64_t j = 0; j < padded; j += kBlock<W>) sums += read<vector_t<W>>(a + j) * read<vector_t<W>>(b + j);
  return sum(sums);
}

// head becomes x less its mean ("layer"), zero beyond size; returns 1 / sqrt(variance + eps), or 1 without a norm.
template <class X, class W>
inline W centre(const X* x, const HeadTransform<W>& transform, W* head) {
  const int64_t size = transform.size, padded = transform.padded;
  widen_head(x, size, padded, head);
  if (transform.norm == HeadNorm::kNone) return W(1);
  if (transform.norm == HeadNorm::kLayer) {
    const W mean = total(head, padded) / static_cast<W>(size);
#pragma omp simd
    for (int64_t j = 0; j < size; ++j) head[j] -= mean;
  }
  return W(1) / std::sqrt(product(head, head, padded) / static_cast<W>(size) + transform.eps);
}

// Heads of a packed projection lie a page apart, where no processor looks ahead by itself.
template <class X>
inline void look_ahead(const X* x, int64_t stride, int64_t size) {
  constexpr int64_t kRows = 6, kLine = 64 / sizeof(X);
  for (int64_t j = 0; j < size; j += kLine) __builtin_prefetch(x + kRows * stride + j);
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

}  // namespace

template <class X, class P>
void transform_heads(const X* x, int64_t stride, int64_t rows, const HeadTransform<wide_t<X>>& transform, int64_t frame,
                     P* out) {
  using W = wide_t<X>;
  const int64_t size = transform.size;
  W head[kMaxHead];
  for (int64_t i = 0; i < rows; ++i, x += stride, out += transform.padded) {
    look_ahead(x, stride, size);
    const W factor = centre(x, transform, head) * transform.scale;
    if (transform.weight) {
#pragma omp simd
      for (int64_t j = 0; j < size; ++j) head[j] *= factor * transform.weight[j];
    } else {
#pragma omp simd
      for (int64_t j = 0; j < size; ++j) head[j] *= factor;
    }
    if (transform.cos) rotate(head, transform, frame + i, W(1));
    for (int64_t j = 0; j < transform.padded; j += kBlock<W>) write(out + j, read<vector_t<W>>(head + j));
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
    look_ahead(x, stride, size);
    const W scale = transform.scale;
#pragma omp simd
    for (int64_t j = 0; j < transform.padded; ++j) g[j] = grad[j] * scale;
    if (transform.cos) rotate(g, transform, frame + i, W(-1));
    if (transform.norm == HeadNorm::kNone) {
#pragma omp simd
      for (int64_t j = 0; j < size; ++j) store(out + j, g[j]);
      continue;
    }
    const W inverse = centre(x, transform, normal);
#pragma omp simd
    for (int64_t j = 0; j < size; ++j) normal[j] *= inverse;
    if (transform.weight) {
#pragma omp simd
      for (int64_t j = 0; j < size; ++j) {
        if (weight_grad) weight_grad[j] += g[j] * normal[j];
        g[j] *= transform.weight[j];
      }
    }
    // The mean gradient, and its part along the normalised head: neither moves the head.
    const W along = product(g, normal, transform.padded) / static_cast<W>(size);
    const W mean = transform.norm == HeadNorm::kLayer ? total(g, transform.padded) / static_cast<W>(size) : W(0);
#pragma omp simd
    for (int64_t j = 0; j < size; ++j) store(out + j, inverse * (g[j] - mean - normal[j] * along));
  }
}

template <class X, class P>
void copy_heads(const X* x, int64_t stride, int64_t rows, int64_t size, int64_t padded, P* out, int64_t out_stride) {
  for (int64_t i = 0; i < rows; ++i, x += stride, out += out_stride) {
    look_ahead(x, stride, size);
#pragma omp simd
    for (int64_t j = 0; j < size; ++j) store(out + j, load(x[j]));
    for (int64_t j = size; j < padded; ++j) out[j] = P{};
  }
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

template <class P>
void softmax_block(wide_t<P>* scores, int64_t rows, int64_t keys, int64_t width, bool first, wide_t<P>* maxima,
                   wide_t<P>* sums, wide_t<P>* acc, int64_t columns, P* weights) {
  using W = wide_t<P>;
  using Vector = vector_t<W>;
  constexpr W kInfinity = std::numeric_limits<W>::infinity();
  for (int64_t i = 0; i < rows; ++i, scores += width, weights += width, acc += columns) {
    // Columns past the keys are padding: a score of -infinity gives them no weight.
    for (int64_t j = keys; j < width; ++j) scores[j] = -kInfinity;
    Vector best = Vector{} - kInfinity, other = best;
    int64_t j = 0;
    for (; j + 2 * kBlock<W> <= width; j += 2 * kBlock<W>) {
      best = greater(read<Vector>(scores + j), best);
      other = greater(read<Vector>(scores + j + kBlock<W>), other);
    }
    for (; j < width; j += kBlock<W>) best = greater(read<Vector>(scores + j), best);
    best = greater(best, other);
    const W before = first ? -kInfinity : maxima[i];
    const W most = greater(fold(best, [](const auto& a, const auto& b) { return greater(a, b); }), before);
    const Vector shift = Vector{} + most * kShiftUnit<W>;
    Vector sum_here = {};
    for (j = 0; j < width; j += kBlock<W>) {
      const Vector weight = exponential<P>(read<Vector>(scores + j), shift);
      sum_here += weight;
      write(weights + j, weight);
    }
    W found = sum(sum_here);
    for (j = keys; j < width; ++j) weights[j] = P{};
    if (most > before && !first) {
      const W factor = exponential<W>(Vector{} + before, shift)[0];
      found += sums[i] * factor;
      for (j = 0; j < columns; j += kBlock<W>) write(acc + j, read<Vector>(acc + j) * factor);
    } else if (!first) {
      found += sums[i];
    }
    sums[i] = found;
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
  using W = wide_t<X>;
  const int64_t padded = (size + kHeadStep - 1) / kHeadStep * kHeadStep;
  W left[kMaxHead], right[kMaxHead];
  for (int64_t i = 0; i < rows; ++i, a += a_stride, b += b_stride) {
    look_ahead(a, a_stride, size);
    look_ahead(b, b_stride, size);
    widen_head(a, size, padded, left);
    widen_head(b, size, padded, right);
    out[i] = product(left, right, padded);
  }
}

template <class P>
void softmax_block_backward(const wide_t<P>* scores, const wide_t<P>* value_products, int64_t keys, int64_t height,
                            int64_t queries, const wide_t<P>* shifts, const wide_t<P>* delta, P* weights, P* gradients,
                            P* gradient_pairs) {
  using W = wide_t<P>;
  using Vector = vector_t<W>;
  for (int64_t i = 0; i < keys; i += 2) {
    for (int64_t j = 0; j < queries; j += kBlock<W>) {
      Vector gradient[2] = {};
      for (int64_t r = 0; r < 2 && i + r < keys; ++r) {
        const int64_t at = (i + r) * queries + j;
        const Vector weight = exponential<P>(read<Vector>(scores + at), read<Vector>(shifts + j));
        gradient[r] = weight * (read<Vector>(value_products + at) - read<Vector>(delta + j));
        write(weights + at, weight);
        write(gradients + at, gradient[r]);
      }
      if constexpr (sizeof(P) == 2) {
        const Bits pairs = rounded(gradient[0]) | rounded(gradient[1]) << 16;
        std::memcpy(gradient_pairs + i * queries + 2 * j, &pairs, sizeof pairs);
      }
    }
  }
  for (int64_t i = keys * queries; i < height * queries; ++i) weights[i] = gradients[i] = P{};
  if constexpr (sizeof(P) == 2)
    for (int64_t i = (keys + 1) / 2 * 2 * queries; i < height * queries; ++i) gradient_pairs[i] = P{};
}

#define LOSATOK_INSTANTIATE(X)                                                                                       \
  template void transform_heads_backward<X>(const X*, int64_t, int64_t, const HeadTransform<wide_t<X>>&, int64_t,    \
                                            const wide_t<X>*, X*, int64_t, wide_t<X>*);                              \
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
