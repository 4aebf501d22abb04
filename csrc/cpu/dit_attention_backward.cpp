// dit_attention on the CPU, backward: scores are computed anew from what the forward kept of each row. A block of keys
// is held against all blocks of queries, transposed (keys in rows), so that the gradients of keys and values are sums
// of plain products; the gradient of the queries is summed transposed for the same reason.
#include <cmath>
#include <limits>
#include <tuple>

#include "cpu/dit_attention.h"

namespace losatok::attention {
namespace {

constexpr int64_t kKeys = 128;  // of a block

template <class P>
constexpr bool kPairs = sizeof(P) == 2;

// A matrix [rows, columns] as both operands of products: as it lies for the first, in pairs of rows for the second.
template <class P>
struct Operand {
  Buffer<P> rows, pairs;

  explicit Operand(int64_t count) : rows(count), pairs(kPairs<P> ? count : 0) {}

  void pair(int64_t first, int64_t height, int64_t columns) {
    if constexpr (kPairs<P>)
      LOSATOK_SIMD(pair_rows)(rows + first * columns, height, columns, height, pairs + first * columns);
  }
  const P* second() const {
    if constexpr (kPairs<P>) return pairs;
    return rows;
  }
};

// One head, its queries made ready and the gradients that are summed over blocks.
template <class X, class P>
class Head {
  using W = wide_t<X>;

 public:
  Head(int64_t queries, int64_t size)
      : size_(size),
        padded_(round_up(size, kHeadStep)),
        q_(round_up(queries, kStep) * padded_),
        grad_(round_up(queries, kStep) * padded_),
        q_columns_(round_up(queries, kStep) * padded_),
        grad_columns_(round_up(queries, kStep) * padded_),
        q_grad_(round_up(queries, kStep) * padded_),
        shifts_(round_up(queries, kStep)),
        delta_(round_up(queries, kStep)),
        keys_(kKeys * padded_),
        key_columns_(kKeys * padded_),
        values_(kKeys * padded_),
        key_grad_(kKeys * padded_),
        value_grad_(kKeys * padded_),
        scores_(kKeys * kQueries),
        value_products_(kKeys * kQueries),
        weights_(kPairs<P> ? kKeys * kQueries : 0),
        gradients_(kPairs<P> ? kKeys * kQueries : 0),
        gradient_pairs_(kPairs<P> ? kKeys * kQueries : 0),
        row_grad_(kQueries * padded_) {}

  void prepare(int64_t unit, int64_t queries, const Heads<const X>& q, const Heads<const X>& grad,
               const Heads<const X>& out, const W* lse, const HeadTransform<W>& transform) {
    queries_ = queries;
    for (int64_t first = 0; first < queries; first += kQueries) {
      const int64_t count = std::min(kQueries, queries - first), height = round_up(count, kStep);
      const int64_t at = first * padded_, extra = (height - count) * padded_;
      LOSATOK_SIMD(transform_heads<X, P>)
      (q.at(unit, first), q.row_stride, count, transform, first, q_.rows + at);
      LOSATOK_SIMD(copy_heads<X, P>)
      (grad.at(unit, first), grad.row_stride, count, size_, padded_, grad_.rows + at, padded_);
      std::fill_n(q_.rows + at + count * padded_, extra, P{});
      std::fill_n(grad_.rows + at + count * padded_, extra, P{});
      transposed_operand<P>(q_.rows + at, height, padded_, q_columns_ + at);
      transposed_operand<P>(grad_.rows + at, height, padded_, grad_columns_ + at);
      q_.pair(first, height, padded_);
      grad_.pair(first, height, padded_);
      LOSATOK_SIMD(head_products<X>)
      (grad.at(unit, first), grad.row_stride, out.at(unit, first), out.row_stride, count, size_, delta_ + first);
      for (int64_t i = 0; i < height; ++i) {
        // Rows of zeros get weights of next to zero, and the gradient is zero there.
        shifts_[first + i] = i < count ? lse[first + i] * kShiftUnit<W> : std::numeric_limits<W>::infinity();
        if (i >= count) delta_[first + i] = W(0);
      }
    }
  }

  // A block of keys of one head: writes the gradients of keys and values, and adds to the gradient of the queries.
  void add_keys(int64_t unit, int64_t first, int64_t count, const Heads<const X>& k, const Heads<const X>& v,
                const HeadTransform<W>& transform, const Heads<X>& grad_k, const Heads<X>& grad_v, W* weight_grad) {
    const int64_t height = round_up(count, kStep), extra = (height - count) * padded_;
    LOSATOK_SIMD(transform_heads<X, P>)(k.at(unit, first), k.row_stride, count, transform, first, keys_);
    LOSATOK_SIMD(copy_heads<X, P>)(v.at(unit, first), v.row_stride, count, size_, padded_, values_, padded_);
    std::fill_n(keys_ + count * padded_, extra, P{});
    std::fill_n(values_ + count * padded_, extra, P{});
    LOSATOK_SIMD(transpose<P>)(keys_, height, padded_, height, key_columns_);
    for (int64_t row = 0; row < queries_; row += kQueries)
      add_block(row, round_up(std::min(kQueries, queries_ - row), kStep), first > 0, count, height);
    LOSATOK_SIMD(copy_heads<W, X>)
    (value_grad_, padded_, count, size_, size_, grad_v.at(unit, first), grad_v.row_stride);
    LOSATOK_SIMD(transform_heads_backward<X>)
    (k.at(unit, first), k.row_stride, count, transform, first, key_grad_, grad_k.at(unit, first), grad_k.row_stride,
     weight_grad);
  }

  // After all keys: the gradient of the queries.
  void finish(int64_t unit, const Heads<const X>& q, const HeadTransform<W>& transform, const Heads<X>& grad_q,
              W* weight_grad) {
    for (int64_t first = 0; first < queries_; first += kQueries) {
      const int64_t count = std::min(kQueries, queries_ - first), width = round_up(count, kStep);
      LOSATOK_SIMD(transpose<W>)(q_grad_ + first * padded_, padded_, width, padded_, row_grad_);
      LOSATOK_SIMD(transform_heads_backward<X>)
      (q.at(unit, first), q.row_stride, count, transform, first, row_grad_, grad_q.at(unit, first), grad_q.row_stride,
       weight_grad);
    }
  }

 private:
  // The block of queries that begins at `row` (`width` rows with padding) against the current block of keys.
  void add_block(int64_t row, int64_t width, bool more_keys, int64_t keys, int64_t height) {
    const int64_t at = row * padded_;
    P *weights = weights_, *gradients = gradients_, *gradient_pairs = gradient_pairs_;
    if constexpr (!kPairs<P>) {
      weights = scores_;
      gradients = gradient_pairs = value_products_;
    }
    multiply<P>(height, width, padded_, keys_, q_columns_ + at, scores_, false);
    multiply<P>(height, width, padded_, values_, grad_columns_ + at, value_products_, false);
    LOSATOK_SIMD(softmax_block_backward<P>)
    (scores_, value_products_, keys, height, width, shifts_ + row, delta_ + row, weights, gradients, gradient_pairs);
    multiply<P>(height, padded_, width, weights, grad_.second() + at, value_grad_, row > 0);
    multiply<P>(height, padded_, width, gradients, q_.second() + at, key_grad_, row > 0);
    multiply<P>(padded_, width, height, key_columns_, gradient_pairs, q_grad_ + at, more_keys);
  }

  int64_t size_, padded_, queries_ = 0;
  Operand<P> q_, grad_;
  Buffer<P> q_columns_, grad_columns_;
  Buffer<W> q_grad_, shifts_, delta_;
  Buffer<P> keys_, key_columns_, values_;
  Buffer<W> key_grad_, value_grad_, scores_, value_products_;
  Buffer<P> weights_, gradients_, gradient_pairs_;
  Buffer<W> row_grad_;
};

// Each head's part of a weight's gradient. They are summed in a fixed order, on any number of threads.
template <class W>
class WeightGrad {
 public:
  WeightGrad(const OptionalTensor& weight, int64_t units)
      : size_(weight ? weight->size(0) : 0), parts_(units * size_, W(0)) {}
  W* part(int64_t unit) { return size_ ? parts_.data() + unit * size_ : nullptr; }
  Tensor sum(const at::TensorOptions& options) const {
    std::vector<double> total(size_, 0.0);
    for (size_t i = 0; i < parts_.size(); ++i) total[i % size_] += parts_[i];
    Tensor result = at::empty({size_}, options);
    std::transform(total.begin(), total.end(), result.mutable_data_ptr<W>(),
                   [](double x) { return static_cast<W>(x); });
    return result;
  }

 private:
  int64_t size_;
  std::vector<W> parts_;
};

template <class X>
void zero_rows(const Heads<X>& x, int64_t unit, int64_t first, int64_t size) {
  for (int64_t row = first; row < x.rows; ++row) std::fill_n(x.at(unit, row), size, X{});
}

template <class X, class P>
std::tuple<Tensor, Tensor> backward_of(const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v,
                                       const Tensor& out, const Tensor& lse, const Tensor& grad_q, const Tensor& grad_k,
                                       const Tensor& grad_v, const Options& options) {
  using W = wide_t<X>;
  const int64_t heads = q.size(2), size = q.size(3), time = q.size(1), units = q.size(0) * heads;
  const Heads<const X> grads(grad), queries(q), keys(k), values(v), outs(out);
  const Heads<X> to_q(grad_q), to_k(grad_k), to_v(grad_v);
  const W* lse_in = lse.const_data_ptr<W>();
  const auto q_transform = options.transform<W>(options.q_weight, size, static_cast<W>(1 / std::sqrt(double(size))));
  const auto k_transform = options.transform<W>(options.k_weight, size, W(1));
  WeightGrad<W> q_weight(options.q_weight, units), k_weight(options.k_weight, units);
  std::vector<int64_t> costs(units);
  int64_t most = 0;
  for (int64_t unit = 0; unit < units; ++unit) {
    costs[unit] = 1 + options.queries[unit / heads] * options.keys[unit / heads];
    most = std::max(most, options.queries[unit / heads]);
  }
  share(costs, [&](int64_t begin, int64_t end) {
    Head<X, P> head(most, size);
    for (int64_t unit = begin; unit < end; ++unit) {
      int64_t valid = options.queries[unit / heads], valid_keys = options.keys[unit / heads];
      if (valid == 0 || valid_keys == 0) valid = valid_keys = 0;
      zero_rows(to_q, unit, valid, size);
      zero_rows(to_k, unit, valid_keys, size);
      zero_rows(to_v, unit, valid_keys, size);
      if (valid == 0) continue;
      head.prepare(unit, valid, queries, grads, outs, lse_in + unit * time, q_transform);
      for (int64_t first = 0; first < valid_keys; first += kKeys)
        head.add_keys(unit, first, std::min(kKeys, valid_keys - first), keys, values, k_transform, to_k, to_v,
                      k_weight.part(unit));
      head.finish(unit, queries, q_transform, to_q, q_weight.part(unit));
    }
  });
  return {q_weight.sum(lse.options()), k_weight.sum(lse.options())};
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& q, const Tensor& k,
                                                            const Tensor& v, const Tensor& out, const Tensor& lse,
                                                            const Options& options) {
  const auto like = [](const Tensor& x) { return at::empty(x.sizes(), x.options()); };
  const Tensor grad_q = like(q), grad_k = like(k), grad_v = like(v);
  Tensor grad_q_weight, grad_k_weight;
  by_types(q.scalar_type(), [&]<class X, class P>() {
    std::tie(grad_q_weight, grad_k_weight) = backward_of<X, P>(readable(grad), readable(q), readable(k), readable(v),
                                                               readable(out), lse, grad_q, grad_k, grad_v, options);
  });
  return {grad_q, grad_k, grad_v, grad_q_weight, grad_k_weight};
}

}  // namespace losatok::attention
