// What forward and backward of dit_attention on the CPU share: the arguments, scratch memory and matrix products.
//
// Per batch item and head, queries go in blocks of kQueries against blocks of keys, so that scores stay in cache. Both
// are rounded up to kStep rows of zeros: products are generated per size, and so get few of them. X is the type of the
// tensors, P that of the products' operands (bfloat16 where the processor multiplies it), W that of everything else.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <optional>
#include <string_view>
#include <type_traits>
#include <vector>

#include "cpu/block_products.h"
#include "cpu/isa.h"
#include "cpu/simd/dit_attention.h"

namespace losatok::attention {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline constexpr int64_t kQueries = 64, kStep = 16;

// c [m, n] = a [m, k] b [k, n], or c += with add; packed. For Bf16, b holds pairs of rows side by side.
template <class P>
void multiply(int64_t m, int64_t n, int64_t k, const P* a, const P* b, wide_t<P>* c, bool add) {
  multiply_blocks(m, n, k, a, k, b, c, add);
}

// The second operand of a product from rows [count, columns], as many as a multiple of kStep: their transpose.
template <class P>
void transposed_operand(const P* rows, int64_t count, int64_t columns, P* out) {
  if constexpr (sizeof(P) == 2)
    LOSATOK_SIMD(transpose_pairs)(rows, count, columns, count, out);
  else
    LOSATOK_SIMD(transpose<P>)(rows, count, columns, count, out);
}

// q, k, v, grad or out: [B, rows, H, h] in memory.
template <class X>
struct Heads {
  X* data;
  int64_t batch_stride, row_stride, head_stride, rows, heads;

  explicit Heads(const Tensor& x)
      : batch_stride(x.stride(0)),
        row_stride(x.stride(1)),
        head_stride(x.stride(2)),
        rows(x.size(1)),
        heads(x.size(2)) {
    if constexpr (std::is_const_v<X>)
      data = static_cast<X*>(x.const_data_ptr());
    else
      data = static_cast<X*>(x.mutable_data_ptr());
  }

  X* at(int64_t unit, int64_t row) const {  // unit: the number of a batch item and head, [B, H]
    return data + (unit / heads) * batch_stride + (unit % heads) * head_stride + row * row_stride;
  }
};

// A copy where the features of a head are not contiguous, as in an expanded gradient.
inline Tensor readable(const Tensor& x) { return x.size(3) <= 1 || x.stride(3) == 1 ? x : x.contiguous(); }

// The arguments that are not q, k or v.
struct Options {
  OptionalTensor q_weight, k_weight, cos, sin;
  HeadNorm norm;
  double eps;
  bool interleaved;
  std::vector<int64_t> queries, keys;  // valid ones of each batch item

  // Of arguments that were checked.
  Options(const Tensor& q, const Tensor& k, const OptionalTensor& q_weight, const OptionalTensor& k_weight,
          const OptionalTensor& cos, const OptionalTensor& sin, const OptionalTensor& lengths,
          const OptionalTensor& key_lengths, std::string_view norm, double eps, bool interleaved);

  template <class W>
  HeadTransform<W> transform(const OptionalTensor& weight, int64_t size, W scale) const {
    const auto data = [](const OptionalTensor& t) -> const W* { return t ? t->const_data_ptr<W>() : nullptr; };
    return {size,         round_up(size, kHeadStep),
            norm,         static_cast<W>(eps),
            data(weight), data(cos),
            data(sin),    cos ? cos->size(1) : 0,
            interleaved,  scale};
  }
};

// Splits items of known cost among threads, in their order, and calls run(begin, end) for each share. A result must not
// depend on where the shares begin.
template <class Run>
void share(const std::vector<int64_t>& costs, const Run& run) {
  const int64_t count = static_cast<int64_t>(costs.size());
  const int64_t shares = at::in_parallel_region() ? 1 : std::min<int64_t>(at::get_num_threads(), count);
  if (count == 0) return;
  std::vector<int64_t> ends(count);
  int64_t total = 0;
  for (int64_t i = 0; i < count; ++i) ends[i] = total += costs[i];
  const auto first = [&](int64_t share) {  // the first item whose middle lies in the share
    const double from = static_cast<double>(total) * static_cast<double>(share) / static_cast<double>(shares);
    const auto beyond = [&](int64_t i) {
      return static_cast<double>(ends[i]) - 0.5 * static_cast<double>(costs[i]) < from;
    };
    int64_t low = 0, high = count;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      beyond(middle) ? low = middle + 1 : high = middle;
    }
    return share == shares ? count : low;
  };
  at::parallel_for(0, shares, 1, [&](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s) run(first(s), first(s + 1));
    at::native::cpublas::brgemm_release(true);
  });
}

// Calls function.operator()<X, P>() for the types that tensors of `type` are computed with.
template <class Function>
void by_types(at::ScalarType type, const Function& function) {
  if (type == at::kDouble)
    function.template operator()<double, double>();
  else if (type == at::kFloat)
    function.template operator()<float, float>();
  else if (multiplies_bfloat16())
    function.template operator()<Bf16, Bf16>();
  else
    function.template operator()<Bf16, float>();
}

std::tuple<Tensor, Tensor> forward(const Tensor& q, const Tensor& k, const Tensor& v, const Options& options);

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& q, const Tensor& k,
                                                            const Tensor& v, const Tensor& out, const Tensor& lse,
                                                            const Options& options);

}  // namespace losatok::attention
