// The time-relation ops on CUDA tensors.
#include <ATen/Context.h>
#include <ATen/ops/baddbmm.h>
#include <ATen/ops/bmm.h>
#include <torch/library.h>

#include <tuple>

#include "checks/time_relation.h"
#include "cuda/bindings.h"
#include "cuda/time_relation.h"

namespace losatok::cuda {
namespace {

using at::Tensor;
using std::optional;

// A window that reaches everything is none.
int64_t effective_window(int64_t window, int64_t time) { return window < 0 || window >= time - 1 ? -1 : window; }

Tensor row_inverses(const Tensor& x, const Frames& frames) {
  const Tensor inverse = empty_float(x, {frames.batch, frames.time});
  check(inverse_norms(dtype_of("low or high", x), make_clips(x), frames, static_cast<float*>(data(inverse)), stream()));
  return inverse;
}

// totals [B] (double): the sum over valid pairs of each clip; with kLossAndGrad also the gradient towards normalised
// rows.
Tensor tiled_totals(Relation kind, const Tensor& low, const Tensor& high, const Frames& frames, int64_t window,
                    const Tensor& grad) {
  const int64_t splits = column_splits(kind, frames.batch, frames.time, processors());
  const int64_t blocks = (frames.time + kTile - 1) / kTile;
  const Tensor terms = empty_float(high, {frames.batch, blocks, splits});
  const Tensor high_inverse = row_inverses(high, frames);
  const Tensor low_inverse = kind == Relation::kEnergy ? high_inverse : row_inverses(low, frames);
  TiledRelation a;
  a.low = make_clips(kind == Relation::kEnergy ? high : low);
  a.high = make_clips(high);
  a.low_inverse = static_cast<const float*>(data(low_inverse));
  a.high_inverse = static_cast<const float*>(data(high_inverse));
  a.frames = frames;
  a.window = window;
  a.terms = static_cast<float*>(data(terms));
  a.grad = grad.defined() ? static_cast<float*>(data(grad)) : nullptr;
  check(tiled_relation(dtype_of("high", high), kind, a, splits, stream()));
  const Tensor totals = empty_float(high, {frames.batch}, at::kDouble);
  check(sum_terms(a.terms, frames.batch, blocks * splits, static_cast<double*>(data(totals)), stream()));
  return totals;
}

// Sizes of the pieces in which a batch is normalised and multiplied, within the workspace.
struct Pieces {
  int64_t items, time;
};

Pieces cut(const Frames& frames, int64_t row_floats, int64_t item_floats) {
  const int64_t budget = kWorkspaceBytes / static_cast<int64_t>(sizeof(float));
  Pieces pieces;
  pieces.time = std::clamp<int64_t>(budget / row_floats, std::min<int64_t>(256, frames.time), frames.time);
  pieces.items = std::clamp<int64_t>(budget / (pieces.time * row_floats + item_floats), 1, frames.batch);
  return pieces;
}

Tensor normalized(const Tensor& x, const Frames& frames, int64_t b0, int64_t items, int64_t t0, int64_t count) {
  const Tensor rows = empty_float(x, {items, count, x.size(2)});
  check(normalize_clips(dtype_of("low or high", x), make_clips(x), frames, b0, items, t0, count,
                        static_cast<float*>(data(rows)), stream()));
  return rows;
}

void add_squares(const Tensor& matrices, double factor, bool first, const Tensor& totals, int64_t b0) {
  check(add_square_sums(static_cast<const float*>(data(matrices)), matrices.size(0), matrices[0].numel(), factor, first,
                        totals.data_ptr<double>() + b0, stream()));
}

// The sum of squares of H^T H per clip: what [T, T] products give, in time linear in T.
Tensor factored_energy(const Tensor& high, const Frames& frames) {
  const at::NoTF32Guard full_precision;
  const int64_t features = high.size(2);
  const Tensor totals = empty_float(high, {frames.batch}, at::kDouble);
  const Pieces pieces = cut(frames, features, features * features);
  for (int64_t b0 = 0; b0 < frames.batch; b0 += pieces.items) {
    const int64_t items = std::min(pieces.items, frames.batch - b0);
    Tensor gram = zeros_float(high, {items, features, features});
    for (int64_t t0 = 0; t0 < frames.time; t0 += pieces.time) {
      const Tensor h = normalized(high, frames, b0, items, t0, std::min(pieces.time, frames.time - t0));
      gram.baddbmm_(h.transpose(1, 2), h);
    }
    add_squares(gram, 1., true, totals, b0);
  }
  return totals;
}

// Past this many multiply-adds on the matrix units, one in float32 is cheaper. By peak rates, not by measurement.
int64_t float_cost(const Tensor& x) { return x.scalar_type() == at::kFloat ? 1 : 8; }

Tensor energy_totals(const Tensor& high, const Frames& frames, int64_t window) {
  // Tiles visit half of T^2 products of D; the factored form makes D^2 of T.
  if (window < 0 && frames.time > 2 * high.size(2) * float_cost(high)) return factored_energy(high, frames);
  return tiled_totals(Relation::kEnergy, high, high, frames, window, Tensor());
}

// ||L L^T - H H^T||^2 = ||L^T L||^2 - 2 ||L^T H||^2 + ||H^T H||^2, and 4 (L (L^T L) - H (H^T L)) towards L. Rows are
// normalised to float32 and multiplied without TF32: the three terms are of the size of T^2 and nearly cancel.
Tensor factored_totals(const Tensor& low, const Tensor& high, const Frames& frames, const optional<Tensor>& high_energy,
                       Tensor grad) {
  const at::NoTF32Guard full_precision;
  const int64_t d = low.size(2), features = high.size(2);
  const Tensor totals = empty_float(low, {frames.batch}, at::kDouble);
  const Pieces pieces = cut(frames, 2 * d + features, d * (d + features));
  for (int64_t b0 = 0; b0 < frames.batch; b0 += pieces.items) {
    const int64_t items = std::min(pieces.items, frames.batch - b0);
    Tensor low_gram = zeros_float(low, {items, d, d}), cross = zeros_float(low, {items, d, features});
    Tensor l, h;
    const auto normalize = [&](int64_t t0) {
      const int64_t count = std::min(pieces.time, frames.time - t0);
      l = normalized(low, frames, b0, items, t0, count);
      h = normalized(high, frames, b0, items, t0, count);
    };
    for (int64_t t0 = 0; t0 < frames.time; t0 += pieces.time) {
      normalize(t0);
      low_gram.baddbmm_(l.transpose(1, 2), l);
      cross.baddbmm_(l.transpose(1, 2), h);
    }
    add_squares(low_gram, 1., true, totals, b0);
    add_squares(cross, -2., false, totals, b0);
    if (!grad.defined()) continue;
    for (int64_t t0 = 0; t0 < frames.time; t0 += pieces.time) {
      if (pieces.time < frames.time) normalize(t0);  // else both are still there
      const Tensor part = at::baddbmm(at::bmm(l, low_gram), h, cross.transpose(1, 2), /*beta=*/4, /*alpha=*/-4);
      grad.narrow(0, b0, items).narrow(1, t0, part.size(1)).copy_(part);
    }
  }
  Tensor sums = totals;
  sums.add_(high_energy.has_value() ? *high_energy : energy_totals(high, frames, -1));
  return sums;
}

bool factored_is_cheaper(const Tensor& low, const Tensor& high, bool have_energy, bool need_grad) {
  const double time = static_cast<double>(low.size(1));
  const double d = static_cast<double>(low.size(2)), features = static_cast<double>(high.size(2));
  const double tiled = need_grad ? time * time * (2. * d + features) : time * time * (d + features) / 2.;
  double factored = time * d * (d + features) * (need_grad ? 2. : 1.) * static_cast<double>(float_cost(low));
  if (!have_energy) {
    factored +=
        std::min(time * time * features / 2., time * features * features * static_cast<double>(float_cost(low)));
  }
  constexpr double kManyLaunches = 512.;  // frames below which the factored form's launches cost more than they save
  return time > kManyLaunches && factored < tiled;
}

std::tuple<Tensor, Tensor> time_relation_op(const Tensor& low_any, const Tensor& high_any,
                                            const optional<Tensor>& lengths, int64_t window_any,
                                            c10::string_view algorithm, const optional<Tensor>& high_energy,
                                            bool need_grad) {
  check::time_relation_forward(low_any, high_any, lengths, window_any, algorithm, high_energy);
  const c10::cuda::CUDAGuard guard(low_any.device());
  const DType dtype = dtype_of("low", low_any);
  const Tensor low = packed_features(low_any), high = packed_features(high_any);
  const optional<Tensor> own_lengths = contiguous(lengths);
  const Frames frames = make_frames(own_lengths, low.size(0), low.size(1));
  const int64_t window = effective_window(window_any, frames.time);
  const bool any = frames.batch > 0 && frames.time > 0;
  bool factored = algorithm == "factored";
  if (algorithm == "auto") factored = window < 0 && factored_is_cheaper(low, high, high_energy.has_value(), need_grad);

  Tensor grad;
  if (need_grad) grad = empty_float(low, low.sizes());
  Tensor totals;
  if (!any) {
    totals = at::zeros({0}, low.options().dtype(at::kDouble));
  } else if (factored) {
    totals = factored_totals(low, high, frames, high_energy, grad);
  } else {
    totals = tiled_totals(need_grad ? Relation::kLossAndGrad : Relation::kLoss, low, high, frames, window, grad);
  }
  const Tensor loss = empty_float(low, {}), scale = empty_float(low, {});
  const MeanOver mean{frames, true, window, 1};
  check(finish_mean(static_cast<const double*>(data(totals)), totals.numel(), mean, loss.data_ptr<float>(),
                    scale.data_ptr<float>(), stream()));
  if (need_grad && any) {
    check(normalize_backward(dtype, make_clips(low), frames, scale.data_ptr<float>(), static_cast<float*>(data(grad)),
                             stream()));
  }
  return {loss, need_grad ? grad : empty_float(low, {0})};
}

Tensor gram_energy_op(const Tensor& high_any, const optional<Tensor>& lengths, int64_t window) {
  check::gram_energy_forward(high_any, lengths);
  const c10::cuda::CUDAGuard guard(high_any.device());
  const Tensor high = packed_features(high_any);
  const optional<Tensor> own_lengths = contiguous(lengths);
  const Frames frames = make_frames(own_lengths, high.size(0), high.size(1));
  if (frames.batch == 0 || frames.time == 0) return zeros_float(high, {frames.batch});
  return energy_totals(high, frames, effective_window(window, frames.time)).to(at::kFloat);
}

}  // namespace
}  // namespace losatok::cuda

TORCH_LIBRARY_IMPL(losatok, CUDA, m) {
  m.impl("time_relation_forward", losatok::cuda::time_relation_op);
  m.impl("gram_energy_forward", losatok::cuda::gram_energy_op);
}
