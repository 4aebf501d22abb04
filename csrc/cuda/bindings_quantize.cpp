// The codebook ops on CUDA tensors. A code that is not there adds nothing.
#include <ATen/ops/arange.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/where.h>
#include <torch/library.h>

#include <tuple>

#include "checks/quantize.h"
#include "cuda/bindings.h"
#include "cuda/quantize.h"

namespace losatok::cuda {
namespace {

using at::Tensor;
using std::optional;

CodedRows make_rows(const char* name, const Tensor& x, const Frames& frames) {
  return {dtype_of(name, x), data(x), x.size(2), x.stride(0), x.stride(1), frames};
}

// Codes are read often and as float32 only.
Tensor float_codes(const char* name, const Tensor& codes) {
  dtype_of(name, codes);
  return codes.to(at::kFloat).contiguous();
}

// Indices [B, T, Q] of x in codes [Q, K, d], and of a single codebook (not `chain`) squared distances [B, T].
std::tuple<Tensor, Tensor> search(const Tensor& x_any, const Tensor& codes, const optional<Tensor>& lengths,
                                  c10::string_view precision, bool chain) {
  const Tensor x = packed_features(x_any);
  const optional<Tensor> own_lengths = contiguous(lengths);
  const Frames frames = make_frames(own_lengths, x.size(0), x.size(1));
  const int64_t rows = frames.batch * frames.time, stages = codes.size(0), count = codes.size(1);
  const int64_t features = x.size(2);
  TORCH_CHECK_VALUE(features <= kScanFeatures, "the CUDA kernels search rows of up to ", kScanFeatures,
                    " features, x has ", features, "; use_backend('reference') takes more");
  constexpr int64_t kScanRows = 16;  // preparing codes for products would cost more
  const bool products = rows > kScanRows && count >= 8 && features <= kSearchFeatures;

  Search a;
  a.rows = make_rows("x", x, frames);
  a.exact = precision == "exact";
  a.splits = 1;
  const int64_t tiles = (count + kCodeTile - 1) / kCodeTile;
  if (!chain) {  // no split of products has less than four tiles
    const int64_t blocks = std::max<int64_t>(1, products ? (rows + 63) / 64 : rows);
    a.splits = std::clamp<int64_t>(2 * processors() / blocks, 1, std::max<int64_t>(1, products ? tiles / 4 : tiles));
  }
  a.per_split = (tiles + a.splits - 1) / a.splits * kCodeTile;
  a.splits = (count + a.per_split - 1) / a.per_split;
  const int64_t padded = products ? padded_codes(count) : 0, depth = products ? product_depth(features) : 0;
  const Tensor centres = empty_float(x, {stages, products ? features : 0});
  const Tensor rounded = empty_float(x, {stages, padded, depth}, at::kHalf);
  const Tensor half_norms = empty_float(x, {stages, padded}), norms = empty_float(x, {stages, padded});
  const Tensor scales = empty_float(x, {stages, padded});
  a.ready.codes = static_cast<const float*>(data(codes));
  a.ready.centres = static_cast<float*>(data(centres));
  a.ready.rounded = data(rounded);
  a.ready.half_norms = static_cast<float*>(data(half_norms));
  a.ready.norms = static_cast<float*>(data(norms));
  a.ready.scales = static_cast<float*>(data(scales));
  a.ready.stages = stages;
  a.ready.count = count;
  a.ready.features = features;

  Tensor indices = empty_float(x, {a.splits, rows, stages}, at::kLong);
  Tensor distances = empty_float(x, {a.splits, chain ? 0 : rows});
  a.indices = static_cast<int64_t*>(data(indices));
  a.distances = static_cast<float*>(data(distances));
  if (products) {
    check(prepare_codes(a.ready, stream()));
    check(search_codes(a, stream()));
  } else {
    check(scan_codes(a, stream()));
  }
  if (!chain && a.splits > 1) {
    const Tensor joined = empty_float(x, {rows}, at::kLong), nearest = empty_float(x, {rows});
    check(join_splits(a.indices, a.distances, a.splits, rows, static_cast<int64_t*>(data(joined)),
                      static_cast<float*>(data(nearest)), stream()));
    indices = joined;
    distances = nearest;
  }
  indices = indices.view({frames.batch, frames.time, stages});
  return {indices, chain ? distances : distances.view({frames.batch, frames.time})};
}

Tensor decoded(const Tensor& codes, const Tensor& books, at::ScalarType type) {
  const Tensor out = empty_float(books, {codes.size(0), books.size(2)}, type);
  SumOfCodes a;
  a.codes = static_cast<const int64_t*>(data(codes));
  a.books = data(books);
  a.out = data(out);
  a.rows = codes.size(0);
  a.used = codes.size(1);
  a.count = books.size(1);
  a.features = books.size(2);
  check(sum_of_codes(dtype_of("codebooks", books), dtype_of("x", out), a, stream()));
  return out;
}

// A stable sort lays the rows of each code side by side: sums are in the order of the rows, and nothing is added
// atomically. choices [q, rows], values [B, T, d], books [Q, K, d].
Tensor gradient_to_codes(const Tensor& values, const Tensor& weights, const Tensor& books, const Tensor& codes,
                         const Tensor& choices) {
  const int64_t count = books.size(1), total = books.size(0) * count;
  const Tensor stage = at::arange(choices.size(0), choices.options()).unsqueeze(1);
  const Tensor inside = choices.ge(0).logical_and(choices.lt(count));
  const Tensor keys = at::where(inside, choices.add(stage, count), total).flatten();
  const auto [sorted, order] = at::sort(total <= INT32_MAX ? keys.to(at::kInt) : keys, /*stable=*/true, 0, false);
  const Tensor starts = at::searchsorted(sorted, at::arange(total + 1, sorted.options()));
  const Tensor out = empty_float(books, books.sizes(), books.scalar_type());
  CodeGradient a;
  a.rows = make_rows("grad or x", values, {nullptr, values.size(0), values.size(1)});
  a.weights = weights.defined() ? static_cast<const float*>(data(weights)) : nullptr;
  a.codes = codes.defined() ? static_cast<const float*>(data(codes)) : nullptr;
  a.order = static_cast<const int64_t*>(data(order));
  a.starts = static_cast<const int64_t*>(data(starts));
  a.out = data(out);
  a.total = total;
  check(code_gradient(dtype_of("codebooks", books), a, stream()));
  return out;
}

std::tuple<Tensor, Tensor> vq_nearest_forward_op(const Tensor& x, const Tensor& codebook,
                                                 const optional<Tensor>& lengths, c10::string_view precision) {
  check::vq_nearest_forward(x, codebook, lengths, precision);
  const c10::cuda::CUDAGuard guard(x.device());
  dtype_of("x", x);
  const auto [indices, distances] =
      search(x, float_codes("codebook", codebook).unsqueeze(0), lengths, precision, false);
  return {indices.view({x.size(0), x.size(1)}), distances};
}

std::tuple<Tensor, Tensor> vq_nearest_backward_op(const Tensor& grad_any, const Tensor& x_any, const Tensor& codebook,
                                                  const Tensor& indices_any, bool need_x, bool need_codebook) {
  check::vq_nearest_backward(grad_any, x_any, codebook, indices_any);
  const c10::cuda::CUDAGuard guard(x_any.device());
  const Tensor x = packed_features(x_any), codes = float_codes("codebook", codebook);
  const Tensor grad = grad_any.to(at::kFloat).contiguous(), indices = indices_any.contiguous();
  const CodedRows rows = make_rows("x", x, {nullptr, x.size(0), x.size(1)});
  const Tensor grad_x = empty_float(x, need_x ? x.sizes() : at::IntArrayRef({0}), x.scalar_type());
  if (need_x) {
    check(distance_gradient(rows, static_cast<const float*>(data(grad)), static_cast<const float*>(data(codes)),
                            codes.size(0), static_cast<const int64_t*>(data(indices)), data(grad_x), stream()));
  }
  if (!need_codebook) return {grad_x, empty_float(codebook, {0}, codebook.scalar_type())};
  return {grad_x, gradient_to_codes(x, grad, codebook.unsqueeze(0), codes, indices.view({1, -1})).squeeze(0)};
}

std::tuple<Tensor, Tensor> rvq_encode_forward_op(const Tensor& x, const Tensor& codebooks,
                                                 const optional<Tensor>& lengths, c10::string_view precision) {
  check::rvq_encode_forward(x, codebooks, lengths, precision);
  const c10::cuda::CUDAGuard guard(x.device());
  dtype_of("x", x);
  const Tensor books = float_codes("codebooks", codebooks);
  const Tensor codes = std::get<0>(search(x, books, lengths, precision, true));
  return {codes, decoded(codes.view({-1, books.size(0)}), books, x.scalar_type()).view(x.sizes())};
}

Tensor rvq_decode_forward_op(const Tensor& codes, const Tensor& codebooks) {
  check::rvq_decode_forward(codes, codebooks);
  const c10::cuda::CUDAGuard guard(codebooks.device());
  dtype_of("codebooks", codebooks);
  return decoded(codes.contiguous(), codebooks.contiguous(), codebooks.scalar_type());
}

Tensor rvq_decode_backward_op(const Tensor& grad, const Tensor& codes, const Tensor& codebooks) {
  check::rvq_decode_backward(grad, codes, codebooks);
  const c10::cuda::CUDAGuard guard(codebooks.device());
  return gradient_to_codes(packed_features(grad).unsqueeze(0), Tensor(), codebooks, Tensor(), codes.t().contiguous());
}

}  // namespace
}  // namespace losatok::cuda

TORCH_LIBRARY_IMPL(losatok, CUDA, m) {
  m.impl("vq_nearest_forward", losatok::cuda::vq_nearest_forward_op);
  m.impl("vq_nearest_backward", losatok::cuda::vq_nearest_backward_op);
  m.impl("rvq_encode_forward", losatok::cuda::rvq_encode_forward_op);
  m.impl("rvq_decode_forward", losatok::cuda::rvq_decode_forward_op);
  m.impl("rvq_decode_backward", losatok::cuda::rvq_decode_backward_op);
}
