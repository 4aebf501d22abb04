// Row and tile kernels of dit_attention, compiled once per instruction set (see cpu/isa.h).
//
// X is the type of tensors, P that of operands of products, W what is computed in (wide_t<X>). Matrices of one head
// have `padded` columns, the head size rounded up to kHeadStep, with zeros in what is added.
#pragma once

#include <cstdint>

#include "cpu/simd/kernels.h"
#include "cpu/simd/values.h"

namespace losatok {

constexpr int64_t kHeadStep = 16;
constexpr int64_t kMaxHead = 256;
template <class W>
constexpr W kShiftUnit = W(1);
template <>
inline constexpr float kShiftUnit<float> = 1.44269504f;  // log2(e): exponentials in float are powers of 2

enum class HeadNorm { kNone, kRms, kLayer };

// What happens to a head of q or k before the products. W is float or double.
template <class W>
struct HeadTransform {
  int64_t size, padded;
  HeadNorm norm;
  W eps;
  const W* weight;     // [size], or null
  const W *cos, *sin;  // [frames, pairs], or null
  int64_t pairs;       // the first 2 * pairs features turn
  bool interleaved;    // pairs (2 i, 2 i + 1), else (i, i + pairs)
  W scale;             // of the result
};

}  // namespace losatok

#define LOSATOK_ATTENTION_KERNELS                                                                                      \
  /* out [rows, padded] = the heads x, `stride` apart, transformed; x is frame `frame` and the following. */           \
  template <class X, class P>                                                                                          \
  void transform_heads(const X* x, int64_t stride, int64_t rows, const HeadTransform<wide_t<X>>& transform,            \
                       int64_t frame, P* out);                                                                         \
  /* From grad [rows, padded] of what transform_heads gave: the gradient of x to out, and that of the weight added to  \
     weight_grad [size] (null: none). */                                                                               \
  template <class X>                                                                                                   \
  void transform_heads_backward(const X* x, int64_t stride, int64_t rows, const HeadTransform<wide_t<X>>& transform,   \
                                int64_t frame, const wide_t<X>* grad, X* out, int64_t out_stride,                      \
                                wide_t<X>* weight_grad);                                                               \
  /* out, rows `out_stride` apart, = x, rows `stride` apart; zeros from size to padded. */                             \
  template <class X, class P>                                                                                          \
  void copy_heads(const X* x, int64_t stride, int64_t rows, int64_t size, int64_t padded, P* out, int64_t out_stride); \
  /* out [height / 2, columns, 2] = x [rows, columns] with pairs of rows side by side, zeros beyond rows. */           \
  void pair_rows(const Bf16* x, int64_t rows, int64_t columns, int64_t height, Bf16* out);                             \
  /* Softmax over one more block of keys: scores [rows, width], of which `keys` count. Updates the maxima and sums of  \
     each row, rescales what was summed for it (acc [rows, columns]; not at the `first` block), and gives the weights  \
     [rows, width], zero beyond keys; weights may be scores. */                                                        \
  template <class P>                                                                                                   \
  void softmax_block(wide_t<P>* scores, int64_t rows, int64_t keys, int64_t width, bool first, wide_t<P>* maxima,      \
                     wide_t<P>* sums, wide_t<P>* acc, int64_t columns, P* weights);                                    \
  /* out, `stride` apart, = acc [rows, padded] / sums; lse = maxima + log(sums). */                                    \
  template <class X>                                                                                                   \
  void finish_heads(const wide_t<X>* acc, int64_t rows, int64_t size, int64_t padded, const wide_t<X>* maxima,         \
                    const wide_t<X>* sums, X* out, int64_t stride, wide_t<X>* lse);                                    \
  /* out[i] = a[i] . b[i] */                                                                                           \
  template <class X>                                                                                                   \
  void head_products(const X* a, int64_t a_stride, const X* b, int64_t b_stride, int64_t rows, int64_t size,           \
                     wide_t<X>* out);                                                                                  \
  /* Transposed, keys in rows: from scores and value_products [height, queries], of which `keys` rows count,           \
     weights = exp(scores - lse) and gradients = weights * (value_products - delta); zero beyond keys. `shifts` are    \
     lse in units of kShiftUnit. For bfloat16 gradient_pairs is filled too, with pairs of rows side by side; else      \
     weights may be scores and gradients value_products. */                                                            \
  template <class P>                                                                                                   \
  void softmax_block_backward(const wide_t<P>* scores, const wide_t<P>* value_products, int64_t keys, int64_t height,  \
                              int64_t queries, const wide_t<P>* shifts, const wide_t<P>* delta, P* weights,            \
                              P* gradients, P* gradient_pairs);

LOSATOK_IN_EACH_ISA(LOSATOK_ATTENTION_KERNELS)
#undef LOSATOK_ATTENTION_KERNELS
