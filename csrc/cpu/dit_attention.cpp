// dit_attention on the CPU, forward: softmax over blocks of keys, whose products, maxima and sums stay in cache. The
// keys of a head are normalised, rotated and packed once, and serve all blocks of its queries.
#include "cpu/dit_attention.h"

#include <torch/library.h>

#include <cmath>
#include <limits>
#include <tuple>
#include <utility>

#include "checks/dit_attention.h"

namespace losatok::attention {

namespace {

constexpr int64_t kKeys = 256;  // of a block

static_assert(check::kMostHeadFeatures == kMaxHead);

OptionalTensor dense(const OptionalTensor& tensor) {
  return check::given(tensor) ? OptionalTensor(tensor->contiguous()) : OptionalTensor();
}

std::vector<int64_t> counts(const OptionalTensor& lengths, int64_t batch, int64_t most) {
  std::vector<int64_t> result(batch, most);
  if (!check::given(lengths)) return result;
  const Tensor values = lengths->contiguous();
  for (int64_t b = 0; b < batch; ++b) result[b] = std::clamp<int64_t>(values.const_data_ptr<int64_t>()[b], 0, most);
  return result;
}

// The keys and values of one head as operands of products, in blocks of kKeys.
template <class P>
struct Keys {
  int64_t unit = -1, count = 0, padded;
  Buffer<P> rows, pairs, keys, values;

  Keys(int64_t most, int64_t padded)
      : padded(padded),
        rows(kKeys * padded),
        pairs(sizeof(P) == 2 ? kKeys * padded : 0),
        keys(round_up(most, kStep) * padded),
        values(round_up(most, kStep) * padded) {}

  int64_t block(int64_t first) const { return std::min(kKeys, count - first); }

  template <class X>
  void prepare(int64_t next, int64_t valid, const Heads<const X>& k, const Heads<const X>& v,
               const HeadTransform<wide_t<X>>& transform) {
    if (unit == next) return;
    unit = next;
    count = valid;
    for (int64_t first = 0; first < count; first += kKeys) {
      const int64_t size = block(first), width = round_up(size, kStep), extra = (width - size) * padded;
      LOSATOK_SIMD(transform_heads<X, P>)(k.at(unit, first), k.row_stride, size, transform, first, rows);
      std::fill_n(rows + size * padded, extra, P{});
      transposed_operand<P>(rows, width, padded, keys + first * padded);
      P* to = values + first * padded;
      if constexpr (sizeof(P) == 2) {
        LOSATOK_SIMD(copy_heads<X, P>)(v.at(unit, first), v.row_stride, size, transform.size, padded, rows, padded);
        LOSATOK_SIMD(pair_rows)(rows, size, padded, width, to);
      } else {
        LOSATOK_SIMD(copy_heads<X, P>)(v.at(unit, first), v.row_stride, size, transform.size, padded, to, padded);
        std::fill_n(to + size * padded, extra, P{});
      }
    }
  }
};

// A block of queries of one head against all its keys.
template <class X, class P>
struct Queries {
  using W = wide_t<X>;
  int64_t padded;
  Buffer<P> rows;
  Buffer<W> scores, acc, maxima, sums;
  Buffer<P> weights;

  explicit Queries(int64_t padded)
      : padded(padded),
        rows(kQueries * padded),
        scores(kQueries * kKeys),
        acc(kQueries * padded),
        maxima(kQueries),
        sums(kQueries),
        weights(sizeof(P) == sizeof(W) ? 0 : kQueries * kKeys) {}

  void attend(const X* q, int64_t stride, int64_t count, const HeadTransform<W>& transform, int64_t frame,
              const Keys<P>& against, X* out, int64_t out_stride, W* lse) {
    const int64_t height = round_up(count, kStep);
    LOSATOK_SIMD(transform_heads<X, P>)(q, stride, count, transform, frame, rows);
    std::fill_n(rows + count * padded, (height - count) * padded, P{});
    for (int64_t first = 0; first < against.count; first += kKeys) {
      const int64_t keys = against.block(first), width = round_up(keys, kStep);
      multiply<P>(height, width, padded, rows, against.keys + first * padded, scores, false);
      P* to = weights;
      if constexpr (sizeof(P) == sizeof(W)) to = scores;
      LOSATOK_SIMD(softmax_block<P>)(scores, count, keys, width, first == 0, maxima, sums, acc, padded, to);
      multiply<P>(height, padded, width, to, against.values + first * padded, acc, first > 0);
    }
    LOSATOK_SIMD(finish_heads<X>)(acc, count, transform.size, padded, maxima, sums, out, out_stride, lse);
  }
};

template <class X, class P>
void forward_of(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out, const Tensor& lse,
                const Options& options) {
  using W = wide_t<X>;
  const int64_t heads = q.size(2), size = q.size(3), padded = round_up(size, kHeadStep), time = q.size(1);
  const Heads<const X> queries(q), keys(k), values(v);
  const Heads<X> to(out);
  W* lse_out = lse.mutable_data_ptr<W>();
  const auto q_transform = options.transform<W>(options.q_weight, size, static_cast<W>(1 / std::sqrt(double(size))));
  const auto k_transform = options.transform<W>(options.k_weight, size, W(1));
  struct Item {
    int64_t unit, first;
  };
  std::vector<Item> items;
  std::vector<int64_t> costs;
  for (int64_t unit = 0; unit < q.size(0) * heads; ++unit) {
    const int64_t valid = options.keys[unit / heads] ? options.queries[unit / heads] : 0;
    for (int64_t first = 0; first < valid; first += kQueries) {
      items.push_back({unit, first});
      costs.push_back(std::min(kQueries, valid - first) * options.keys[unit / heads]);
    }
    for (int64_t row = valid; row < time; ++row) {
      std::fill_n(to.at(unit, row), size, X{});
      lse_out[unit * time + row] = -std::numeric_limits<W>::infinity();
    }
  }
  const int64_t most = k.size(0) ? *std::max_element(options.keys.begin(), options.keys.end()) : 0;
  share(costs, [&](int64_t begin, int64_t end) {
    Keys<P> against(most, padded);
    Queries<X, P> block(padded);
    for (int64_t i = begin; i < end; ++i) {
      const auto [unit, first] = items[i];
      against.prepare(unit, options.keys[unit / heads], keys, values, k_transform);
      const int64_t count = std::min(kQueries, options.queries[unit / heads] - first);
      block.attend(queries.at(unit, first), queries.row_stride, count, q_transform, first, against, to.at(unit, first),
                   to.row_stride, lse_out + unit * time + first);
    }
  });
}

}  // namespace

Options::Options(const Tensor& q, const Tensor& k, const OptionalTensor& q_weight, const OptionalTensor& k_weight,
                 const OptionalTensor& cos, const OptionalTensor& sin, const OptionalTensor& lengths,
                 const OptionalTensor& key_lengths, std::string_view norm, double eps, bool interleaved)
    : q_weight(dense(q_weight)),
      k_weight(dense(k_weight)),
      cos(dense(cos)),
      sin(dense(sin)),
      norm(check::head_norm<HeadNorm>(norm)),
      eps(eps),
      interleaved(interleaved),
      queries(counts(lengths, q.size(0), q.size(1))),
      keys(counts(key_lengths, q.size(0), k.size(1))) {}

std::tuple<Tensor, Tensor> forward(const Tensor& q, const Tensor& k, const Tensor& v, const Options& options) {
  Tensor out = at::empty(q.sizes(), q.options());
  Tensor lse = at::empty({q.size(0), q.size(2), q.size(1)}, q.options().dtype(check::wide_type(q.scalar_type())));
  by_types(q.scalar_type(),
           [&]<class X, class P>() { forward_of<X, P>(readable(q), readable(k), readable(v), out, lse, options); });
  return {out, lse};
}

namespace {

// float16 tensors are converted to float32 first: float16 products are slow on a CPU.
Tensor widened(const Tensor& x) { return x.scalar_type() == at::kHalf ? x.to(at::kFloat) : x; }

std::tuple<Tensor, Tensor> dit_attention_forward(const Tensor& q, const Tensor& k, const Tensor& v,
                                                 const OptionalTensor& q_weight, const OptionalTensor& k_weight,
                                                 const OptionalTensor& cos, const OptionalTensor& sin,
                                                 const OptionalTensor& lengths, const OptionalTensor& key_lengths,
                                                 c10::string_view norm, double eps, bool interleaved) {
  check::dit_attention_forward(q, k, v, q_weight, k_weight, cos, sin, lengths, key_lengths, norm);
  const Options options(q, k, q_weight, k_weight, cos, sin, lengths, key_lengths, norm, eps, interleaved);
  auto [out, lse] = forward(widened(q), widened(k), widened(v), options);
  return {out.to(q.scalar_type()), lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> dit_attention_backward(
    const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& q_weight,
    const OptionalTensor& k_weight, const OptionalTensor& cos, const OptionalTensor& sin, const OptionalTensor& lengths,
    const OptionalTensor& key_lengths, const Tensor& out, const Tensor& lse, c10::string_view norm, double eps,
    bool interleaved) {
  check::dit_attention_backward(grad, q, k, v, q_weight, k_weight, cos, sin, lengths, key_lengths, out, lse, norm);
  const Options options(q, k, q_weight, k_weight, cos, sin, lengths, key_lengths, norm, eps, interleaved);
  auto [grad_q, grad_k, grad_v, grad_q_weight, grad_k_weight] =
      backward(widened(grad), widened(q), widened(k), widened(v), widened(out), lse.contiguous(), options);
  const at::ScalarType type = q.scalar_type();
  return {grad_q.to(type), grad_k.to(type), grad_v.to(type), grad_q_weight, grad_k_weight};
}

}  // namespace
}  // namespace losatok::attention

TORCH_LIBRARY_IMPL(losatok, CPU, m) {
  m.impl("dit_attention_forward", &losatok::attention::dit_attention_forward);
  m.impl("dit_attention_backward", &losatok::attention::dit_attention_backward);
}
