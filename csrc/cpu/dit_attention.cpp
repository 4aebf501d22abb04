// dit_attention on the CPU, forward: softmax over blocks of keys, whose products, maxima and sums stay in cache. The
// keys of a head are normalised, rotated and packed once, and serve all blocks of its queries.
#include "cpu/dit_attention.h"

#include <torch/library.h>

#include <cmath>
#include <limits>
#include <tuple>
#include <utility>

#include "cpu/checks.h"

namespace losatok::attention {

namespace {

constexpr int64_t kKeys = 256;  // of a block

std::vector<int64_t> counts(const OptionalTensor& lengths, int64_t batch, int64_t most) {
  std::vector<int64_t> result(batch, most);
  if (!lengths) return result;
  const Tensor values = lengths->to(at::kLong).contiguous();
  for (int64_t b = 0; b < batch; ++b) result[b] = std::clamp<int64_t>(values.const_data_ptr<int64_t>()[b], 0, most);
  return result;
}

HeadNorm norm_of(std::string_view name) {
  if (name == "none") return HeadNorm::kNone;
  if (name == "rms") return HeadNorm::kRms;
  if (name == "layer") return HeadNorm::kLayer;
  TORCH_CHECK_VALUE(false, "norm should be one of none, rms, layer, got ", name);
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

Options::Options(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& q_weight,
                 const OptionalTensor& k_weight, const OptionalTensor& cos, const OptionalTensor& sin,
                 const OptionalTensor& lengths, const OptionalTensor& key_lengths, std::string_view norm, double eps,
                 bool interleaved)
    : norm(norm_of(norm)), eps(eps), interleaved(interleaved) {
  // The public function says all this better; here it keeps raw calls from reading past a tensor.
  TORCH_CHECK_VALUE(q.dim() == 4 && k.dim() == 4 && q.size(0) == k.size(0) && q.size(2) == k.size(2) &&
                        q.size(3) == k.size(3) && v.sizes() == k.sizes(),
                    "q should have shape [B, T, H, h], k and v [B, S, H, h], got ", q.sizes(), ", ", k.sizes(), ", ",
                    v.sizes());
  TORCH_CHECK_VALUE(q.size(3) >= 1 && q.size(3) <= kMaxHead, "heads should have 1 to ", kMaxHead, " features, got ",
                    q.size(3));
  check::floating("q", q);
  check::dtype("k", k, q.scalar_type());
  check::dtype("v", v, q.scalar_type());
  const at::ScalarType wide = q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const auto ready = [&](const char* name, const OptionalTensor& t, at::IntArrayRef sizes) -> OptionalTensor {
    if (!t || !t->defined()) return {};
    TORCH_CHECK_VALUE(t->sizes() == sizes, name, " should have shape ", sizes, ", got ", t->sizes());
    return t->to(wide).contiguous();
  };
  this->q_weight = ready("q_weight", q_weight, {q.size(3)});
  this->k_weight = ready("k_weight", k_weight, {q.size(3)});
  if (cos && cos->defined()) {
    TORCH_CHECK_VALUE(
        sin && sin->defined() && cos->dim() == 2 && 2 * cos->size(1) <= q.size(3) && k.size(1) == q.size(1),
        "cos and sin should have shape [T, h_rope / 2], h_rope at most h, and go with S = T");
    this->cos = ready("cos", cos, {q.size(1), cos->size(1)});
    this->sin = ready("sin", sin, {q.size(1), cos->size(1)});
  }
  check::lengths(lengths, q.size(0));
  check::lengths(key_lengths, q.size(0), "key_lengths");
  queries = counts(lengths, q.size(0), q.size(1));
  keys = counts(key_lengths, q.size(0), k.size(1));
}

std::tuple<Tensor, Tensor> forward(const Tensor& q, const Tensor& k, const Tensor& v, const Options& options) {
  Tensor out = at::empty(q.sizes(), q.options());
  Tensor lse = at::empty({q.size(0), q.size(2), q.size(1)},
                         q.options().dtype(q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat));
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
  const Options options(q, k, v, q_weight, k_weight, cos, sin, lengths, key_lengths, norm, eps, interleaved);
  auto [out, lse] = forward(widened(q), widened(k), widened(v), options);
  return {out.to(q.scalar_type()), lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> dit_attention_backward(
    const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& q_weight,
    const OptionalTensor& k_weight, const OptionalTensor& cos, const OptionalTensor& sin, const OptionalTensor& lengths,
    const OptionalTensor& key_lengths, const Tensor& out, const Tensor& lse, c10::string_view norm, double eps,
    bool interleaved) {
  const Options options(q, k, v, q_weight, k_weight, cos, sin, lengths, key_lengths, norm, eps, interleaved);
  for (const auto& [name, tensor] : {std::pair{"grad", &grad}, std::pair{"out", &out}}) {
    check::dtype(name, *tensor, q.scalar_type());
    check::sizes(name, *tensor, {q.size(0), q.size(1), q.size(2), q.size(3)});
  }
  check::dtype("lse", lse, q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
  check::sizes("lse", lse, {q.size(0), q.size(2), q.size(1)});
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
