// The ops of a transformer block on CUDA tensors: modulated layer norm, gated residual, attention.
#include <torch/library.h>

#include <tuple>

#include "checks/dit_attention.h"
#include "checks/modulation.h"
#include "cuda/bindings.h"
#include "cuda/dit_attention.h"
#include "cuda/gated_residual.h"
#include "cuda/layer_norm_modulate.h"

namespace losatok::cuda {
namespace {

using at::Tensor;
using std::optional;

// The gradient of a modulation of x [B, T, C]: rows where it is per frame, else shares by chunks of frames.
struct ModulationGradient {
  Tensor rows, parts;

  ModulationGradient(const Tensor& x, bool per_frame) {
    if (per_frame) {
      rows = at::empty(x.sizes(), x.options());
    } else {
      parts = empty_float(x, {x.size(0), modulation_chunks(x.size(1)), x.size(2)});
    }
  }
  void* row_data() const { return rows.defined() ? data(rows) : nullptr; }
  float* part_data() const { return parts.defined() ? static_cast<float*>(data(parts)) : nullptr; }

  Tensor finish(const Tensor& x) const {
    if (rows.defined()) return rows;
    const Tensor sums = at::empty({x.size(0), x.size(2)}, x.options());
    check(sum_chunks(part_data(), x.size(0), parts.size(1), x.size(2), dtype_of("x", x), data(sums), stream()));
    return sums;
  }
};

std::tuple<Tensor, Tensor, Tensor> layer_norm_modulate_op(const Tensor& x_any, const Tensor& shift_any,
                                                          const Tensor& scale_any, double eps) {
  check::layer_norm_modulate_forward(x_any, shift_any, scale_any);
  const c10::cuda::CUDAGuard guard(x_any.device());
  const DType dtype = dtype_of("x", x_any);
  const Tensor x = packed_features(x_any), shift = packed_features(shift_any), scale = packed_features(scale_any);
  const int64_t batch = x.size(0), time = x.size(1);
  const Tensor y = at::empty(x.sizes(), x.options());
  const Tensor mean = empty_float(x, {batch, time}), rstd = empty_float(x, {batch, time});
  const LayerNormModulate a{make_clips(x),
                            make_clips(shift),
                            make_clips(scale),
                            data(y),
                            static_cast<float*>(data(mean)),
                            static_cast<float*>(data(rstd)),
                            batch,
                            time,
                            static_cast<float>(eps)};
  check(layer_norm_modulate(dtype, a, stream()));
  return {y, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> layer_norm_modulate_backward_op(const Tensor& grad_any, const Tensor& x_any,
                                                                   const Tensor& scale_any, const Tensor& mean_any,
                                                                   const Tensor& rstd_any, bool per_frame_shift) {
  check::layer_norm_modulate_backward(grad_any, x_any, scale_any, mean_any, rstd_any);
  const c10::cuda::CUDAGuard guard(x_any.device());
  const DType dtype = dtype_of("x", x_any);
  const Tensor grad = packed_features(grad_any), x = packed_features(x_any), scale = packed_features(scale_any);
  const Tensor mean = mean_any.contiguous(), rstd = rstd_any.contiguous();
  const Tensor grad_x = at::empty(x.sizes(), x.options());
  const ModulationGradient shift_grad(x, per_frame_shift), scale_grad(x, scale.dim() == 3);
  const LayerNormModulateBackward a{make_clips(grad),
                                    make_clips(x),
                                    make_clips(scale),
                                    static_cast<const float*>(data(mean)),
                                    static_cast<const float*>(data(rstd)),
                                    data(grad_x),
                                    shift_grad.row_data(),
                                    scale_grad.row_data(),
                                    shift_grad.part_data(),
                                    scale_grad.part_data(),
                                    x.size(0),
                                    x.size(1)};
  check(layer_norm_modulate_backward(dtype, a, stream()));
  return {grad_x, shift_grad.finish(x), scale_grad.finish(x)};
}

Tensor gated_residual_op(const Tensor& x_any, const Tensor& branch_any, const Tensor& gate_any) {
  check::gated_residual_forward(x_any, branch_any, gate_any);
  const c10::cuda::CUDAGuard guard(x_any.device());
  const DType dtype = dtype_of("x", x_any);
  const Tensor x = packed_features(x_any), branch = packed_features(branch_any), gate = packed_features(gate_any);
  const Tensor y = at::empty(x.sizes(), x.options());
  const GatedResidual a{make_clips(x), make_clips(branch), make_clips(gate), data(y), x.size(0), x.size(1)};
  check(gated_residual(dtype, a, stream()));
  return y;
}

std::tuple<Tensor, Tensor> gated_residual_backward_op(const Tensor& grad_any, const Tensor& branch_any,
                                                      const Tensor& gate_any) {
  check::gated_residual_backward(grad_any, branch_any, gate_any);
  const c10::cuda::CUDAGuard guard(branch_any.device());
  const DType dtype = dtype_of("branch", branch_any);
  const Tensor grad = packed_features(grad_any), branch = packed_features(branch_any);
  const Tensor gate = packed_features(gate_any);
  const Tensor grad_branch = at::empty(branch.sizes(), branch.options());
  const ModulationGradient gate_grad(branch, gate.dim() == 3);
  const GatedResidualBackward a{make_clips(grad),     make_clips(branch),    make_clips(gate), data(grad_branch),
                                gate_grad.row_data(), gate_grad.part_data(), branch.size(0),   branch.size(1)};
  check(gated_residual_backward(dtype, a, stream()));
  return {grad_branch, gate_grad.finish(branch)};
}

// --- attention ------------------------------------------------------------------------------------------------------

Heads make_heads(const Tensor& x) { return {data(x), x.stride(0), x.stride(1), x.stride(2)}; }

// What a call of the op has, once checked, in the form that launchers take; keeps alive what they point to.
class Attention {
 public:
  Attention(const Tensor& q_any, const Tensor& k_any, const Tensor& v_any, const optional<Tensor>& q_weight,
            const optional<Tensor>& k_weight, const optional<Tensor>& cos, const optional<Tensor>& sin,
            const optional<Tensor>& lengths, const optional<Tensor>& key_lengths, c10::string_view norm, double eps,
            bool interleaved)
      : dtype(dtype_of("q", q_any)),
        q(packed_features(q_any)),
        k(packed_features(k_any)),
        v(packed_features(v_any)),
        heads(q.size(2)),
        head_size(q.size(3)),
        q_weight_(contiguous(q_weight)),
        k_weight_(contiguous(k_weight)),
        cos_(contiguous(cos)),
        sin_(contiguous(sin)),
        lengths_(contiguous(lengths)),
        key_lengths_(contiguous(key_lengths)),
        queries(make_frames(lengths_, q.size(0), q.size(1))),
        keys(make_frames(key_lengths_, k.size(0), k.size(1))),
        plain_{check::head_norm<HeadNorm>(norm), static_cast<float>(eps), nullptr, nullptr, nullptr, 0, interleaved} {
    TORCH_CHECK_VALUE(head_size <= kMaxHeadSize, "the CUDA kernels take heads of up to ", kMaxHeadSize,
                      " features, got ", head_size, " (q's last size); use_backend('triton') takes 256");
    if (cos_.has_value()) {
      plain_.cos = static_cast<const float*>(data(cos_));
      plain_.sin = static_cast<const float*>(data(sin_));
      plain_.rotary = 2 * cos_->size(1);
    }
  }

  Preparation of_queries() const { return with_weight(q_weight_); }
  Preparation of_keys() const { return with_weight(k_weight_); }

  // x prepared, or x itself where there is nothing to do.
  Tensor prepared(const Tensor& x, const Preparation& preparation, const Frames& frames) const {
    if (preparation.norm == HeadNorm::kNone && preparation.rotary == 0) return x;
    const Tensor out = at::empty(x.sizes(), x.options().memory_format(at::MemoryFormat::Contiguous));
    check(prepare_heads(dtype, {make_heads(x), preparation, data(out), frames, heads, head_size}, stream()));
    return out;
  }

  // What a side's blocks add to the gradient of its weight, or nothing.
  Tensor weight_parts(const Preparation& preparation, const Frames& frames) const {
    if (preparation.weight == nullptr) return Tensor();
    return empty_float(q, {frames.batch * heads * attention_blocks(frames.time), head_size});
  }
  Tensor sum_weight_parts(const Tensor& parts) const {
    if (!parts.defined()) return empty_float(q, {0});
    const Tensor sums = empty_float(q, {head_size});
    sum_columns(parts, sums, false);
    return sums;
  }

  const DType dtype;
  const Tensor q, k, v;
  const int64_t heads, head_size;

 private:
  Preparation with_weight(const optional<Tensor>& weight) const {
    Preparation preparation = plain_;
    preparation.weight = static_cast<const float*>(data(weight));
    return preparation;
  }
  const optional<Tensor> q_weight_, k_weight_, cos_, sin_, lengths_, key_lengths_;

 public:
  const Frames queries, keys;  // after the lengths that they point to

 private:
  Preparation plain_;
};

std::tuple<Tensor, Tensor> dit_attention_op(const Tensor& q, const Tensor& k, const Tensor& v,
                                            const optional<Tensor>& q_weight, const optional<Tensor>& k_weight,
                                            const optional<Tensor>& cos, const optional<Tensor>& sin,
                                            const optional<Tensor>& lengths, const optional<Tensor>& key_lengths,
                                            c10::string_view norm, double eps, bool interleaved) {
  check::dit_attention_forward(q, k, v, q_weight, k_weight, cos, sin, lengths, key_lengths, norm);
  const c10::cuda::CUDAGuard guard(q.device());
  const Attention op(q, k, v, q_weight, k_weight, cos, sin, lengths, key_lengths, norm, eps, interleaved);
  const Tensor out = at::empty(q.sizes(), q.options().memory_format(at::MemoryFormat::Contiguous));
  const Tensor lse = empty_float(q, {op.queries.batch, op.heads, op.queries.time});
  const Tensor ready = op.prepared(op.k, op.of_keys(), op.keys);
  const AttentionForward a{
      make_heads(op.q), make_heads(ready), make_heads(op.v), op.of_queries(), data(out), static_cast<float*>(data(lse)),
      op.queries,       op.keys,           op.heads,         op.head_size};
  check(attention_forward(op.dtype, a, stream()));
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> dit_attention_backward_op(
    const Tensor& grad_any, const Tensor& q, const Tensor& k, const Tensor& v, const optional<Tensor>& q_weight,
    const optional<Tensor>& k_weight, const optional<Tensor>& cos, const optional<Tensor>& sin,
    const optional<Tensor>& lengths, const optional<Tensor>& key_lengths, const Tensor& out_any, const Tensor& lse_any,
    c10::string_view norm, double eps, bool interleaved) {
  check::dit_attention_backward(grad_any, q, k, v, q_weight, k_weight, cos, sin, lengths, key_lengths, out_any, lse_any,
                                norm);
  const c10::cuda::CUDAGuard guard(q.device());
  const Attention op(q, k, v, q_weight, k_weight, cos, sin, lengths, key_lengths, norm, eps, interleaved);
  const Tensor grad = packed_features(grad_any), out = packed_features(out_any), lse = lse_any.contiguous();
  const auto dense = [](const Tensor& x) {
    return at::empty(x.sizes(), x.options().memory_format(at::MemoryFormat::Contiguous));
  };
  const Tensor grad_q = dense(q), grad_k = dense(k), grad_v = dense(v);
  const Tensor delta = empty_float(q, lse.sizes());
  check(head_products(
      op.dtype,
      {make_heads(out), make_heads(grad), static_cast<float*>(data(delta)), op.queries, op.heads, op.head_size},
      stream()));
  const Preparation of_queries = op.of_queries(), of_keys = op.of_keys();
  const Tensor ready_q = op.prepared(op.q, of_queries, op.queries), ready_k = op.prepared(op.k, of_keys, op.keys);
  const Tensor q_parts = op.weight_parts(of_queries, op.queries), k_parts = op.weight_parts(of_keys, op.keys);

  AttentionGradient a;
  a.grad = make_heads(grad);
  a.v = make_heads(op.v);
  a.lse = static_cast<const float*>(data(lse));
  a.delta = static_cast<const float*>(data(delta));
  a.queries = op.queries;
  a.keys = op.keys;
  a.heads = op.heads;
  a.head_size = op.head_size;

  a.x = make_heads(op.q);
  a.ready = make_heads(ready_q);
  a.other = make_heads(ready_k);
  a.preparation = of_queries;
  a.grad_x = data(grad_q);
  a.grad_v = nullptr;
  a.weight_parts = q_parts.defined() ? static_cast<float*>(data(q_parts)) : nullptr;
  check(attention_query_gradient(op.dtype, a, stream()));

  a.x = make_heads(op.k);
  a.ready = make_heads(ready_k);
  a.other = make_heads(ready_q);
  a.preparation = of_keys;
  a.grad_x = data(grad_k);
  a.grad_v = data(grad_v);
  a.weight_parts = k_parts.defined() ? static_cast<float*>(data(k_parts)) : nullptr;
  check(attention_key_gradient(op.dtype, a, stream()));
  return {grad_q, grad_k, grad_v, op.sum_weight_parts(q_parts), op.sum_weight_parts(k_parts)};
}

}  // namespace
}  // namespace losatok::cuda

TORCH_LIBRARY_IMPL(losatok, CUDA, m) {
  m.impl("layer_norm_modulate_forward", losatok::cuda::layer_norm_modulate_op);
  m.impl("layer_norm_modulate_backward", losatok::cuda::layer_norm_modulate_backward_op);
  m.impl("gated_residual_forward", losatok::cuda::gated_residual_op);
  m.impl("gated_residual_backward", losatok::cuda::gated_residual_backward_op);
  m.impl("dit_attention_forward", losatok::cuda::dit_attention_op);
  m.impl("dit_attention_backward", losatok::cuda::dit_attention_backward_op);
}
