// The bottleneck ops on CUDA tensors.
#include <torch/library.h>

#include <tuple>

#include "checks/bottleneck.h"
#include "cuda/bindings.h"
#include "cuda/bottleneck.h"

namespace losatok::cuda {
namespace {

using at::Tensor;
using std::optional;

Tensor none(const Tensor& like, at::ScalarType dtype) { return empty_float(like, {0}, dtype); }

// Outputs of at most kProjectMaxOut features come from one kernel, which keeps the hidden units in shared memory. Wider
// ones would make it compute them once per 128 outputs; there the hidden units go through a bounded workspace.
std::tuple<Tensor, Tensor> project_forward_op(const Tensor& x_any, const Tensor& weight_in_any,
                                              const optional<Tensor>& bias_in_any, const Tensor& weight_out_any,
                                              const optional<Tensor>& bias_out_any, c10::string_view activation_name,
                                              bool keep_hidden) {
  check::bottleneck_project_forward(x_any, weight_in_any, bias_in_any, weight_out_any, bias_out_any);
  const c10::cuda::CUDAGuard guard(x_any.device());
  const DType dtype = dtype_of("x", x_any);
  const auto activation = check::activation<Activation>(activation_name);
  const Tensor x = packed_features(x_any);
  const Tensor weight_in = packed_features(weight_in_any), weight_out = packed_features(weight_out_any);
  const optional<Tensor> bias_in = contiguous(bias_in_any), bias_out = contiguous(bias_out_any);
  const int64_t rows = x.size(0), hidden_size = weight_in.size(0), out = weight_out.size(0);
  const auto type = x.scalar_type();
  Tensor z = empty_float(x, {rows, out}, type);
  Tensor hidden = empty_float(x, {keep_hidden ? rows : 0, hidden_size}, type);
  if (rows == 0) return {z, hidden};

  if (out <= kProjectMaxOut) {
    const ProjectPlan plan = project_plan(rows, hidden_size, processors());
    const Tensor partial = empty_float(x, {plan.splits > 1 ? plan.splits : 0, rows, out});
    ProjectForward a;
    a.x = data(x);
    a.weight_in = data(weight_in);
    a.bias_in = data(bias_in);
    a.weight_out = data(weight_out);
    a.bias_out = data(bias_out);
    a.z = data(z);
    a.hidden = data(hidden);
    a.partial = static_cast<float*>(data(partial));
    a.rows = rows;
    a.features = x.size(1);
    a.hidden_size = hidden_size;
    a.out = out;
    a.stride_x = x.stride(0);
    a.stride_in = weight_in.stride(0);
    a.stride_out = weight_out.stride(0);
    a.activation = activation;
    check(project_forward(dtype, a, plan, stream()));
    return {z, hidden};
  }
  const int64_t chunk = rows_per_chunk(2 * hidden_size * x.element_size());
  for (int64_t row = 0; row < rows; row += chunk) {
    const int64_t count = std::min(chunk, rows - row);
    Tensor values;
    if (keep_hidden) {
      values = hidden.narrow(0, row, count);
      linear_out(values, x.narrow(0, row, count), weight_in, bias_in);
    } else {
      values = linear(x.narrow(0, row, count), weight_in, bias_in);
    }
    const Tensor activated = keep_hidden ? empty_float(x, {count, hidden_size}, type) : values;
    check(activate(dtype, data(values), data(activated), values.numel(), activation, stream()));
    linear_out(z.narrow(0, row, count), activated, weight_out, bias_out);
  }
  return {z, hidden};
}

// grad_hidden and act(hidden) come from one kernel where grad is narrow, so that reading and writing [N, H] is what it
// costs; a wide grad is a matrix product worth cuBLAS. The other products are plain.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> project_backward_op(
    const Tensor& grad_any, const Tensor& x, const Tensor& hidden_any, const Tensor& weight_in,
    const Tensor& weight_out_any, c10::string_view activation_name, bool need_x, bool need_parameters) {
  check::bottleneck_project_backward(grad_any, x, hidden_any, weight_in, weight_out_any);
  const c10::cuda::CUDAGuard guard(x.device());
  const DType dtype = dtype_of("x", x);
  const auto type = x.scalar_type();
  const auto activation = check::activation<Activation>(activation_name);
  const Tensor grad = packed_features(grad_any), weight_out = packed_features(weight_out_any);
  const Tensor hidden = hidden_any.contiguous();
  const int64_t rows = x.size(0), hidden_size = weight_in.size(0), out = weight_out.size(0);
  if (rows == 0) {
    const auto zeros = [&](bool wanted, at::IntArrayRef sizes) {
      return wanted ? at::zeros(sizes, x.options()) : none(x, type);
    };
    return {zeros(need_x, x.sizes()), zeros(need_parameters, weight_in.sizes()), zeros(need_parameters, {hidden_size}),
            zeros(need_parameters, weight_out.sizes()), zeros(need_parameters, {out})};
  }

  constexpr int64_t kNarrow = 256;
  Tensor grad_hidden, activated;
  Tensor grad_bias_in = empty_float(x, {need_parameters ? hidden_size : 0}, type);
  if (need_parameters) activated = empty_float(x, {rows, hidden_size}, type);
  if (out <= kNarrow) {
    grad_hidden = empty_float(x, {rows, hidden_size}, type);
    const int64_t blocks = (rows + kGradRows - 1) / kGradRows;
    const Tensor partial = empty_float(x, {need_parameters ? blocks : 0, hidden_size});
    GradHidden a;
    a.grad = data(grad);
    a.weight_out = data(weight_out);
    a.hidden = data(hidden);
    a.grad_hidden = data(grad_hidden);
    a.activated = need_parameters ? data(activated) : nullptr;
    a.partial = static_cast<float*>(data(partial));
    a.rows = rows;
    a.hidden_size = hidden_size;
    a.out = out;
    a.stride_grad = grad.stride(0);
    a.stride_out = weight_out.stride(0);
    a.activation = activation;
    check(losatok::cuda::grad_hidden(dtype, a, stream()));
    if (need_parameters) sum_columns(partial, grad_bias_in, false);
  } else {
    grad_hidden = at::mm(grad, weight_out);
    check(multiply_by_derivative(dtype, data(grad_hidden), data(hidden), hidden.numel(), activation, stream()));
    if (need_parameters) {
      check(activate(dtype, data(hidden), data(activated), hidden.numel(), activation, stream()));
      sum_columns(grad_hidden, grad_bias_in, false);
    }
  }
  const Tensor grad_x = need_x ? at::mm(grad_hidden, weight_in) : none(x, type);
  if (!need_parameters) return {grad_x, none(x, type), grad_bias_in, none(x, type), none(x, type)};
  Tensor grad_bias_out = empty_float(x, {out}, type);
  sum_columns(grad, grad_bias_out, false);
  return {grad_x, at::mm(grad_hidden.t(), x), grad_bias_in, at::mm(grad.t(), activated), grad_bias_out};
}

// Blocks of rows, each restored, compared and taken back to gradients before the next: restored and hidden features
// exist one block at a time. Gradients are sums in float32 until the scale, which needs all lengths, meets them at the
// end.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> normalized_reconstruction_loss_op(
    const Tensor& z_any, const Tensor& target_any, const Tensor& weight_in, const optional<Tensor>& bias_in,
    const Tensor& weight_out, const optional<Tensor>& bias_out, const optional<Tensor>& lengths,
    c10::string_view activation_name, bool need_grad) {
  check::normalized_reconstruction_loss_forward(z_any, target_any, weight_in, bias_in, weight_out, bias_out, lengths);
  const c10::cuda::CUDAGuard guard(z_any.device());
  const DType dtype = dtype_of("z", z_any);
  const auto type = z_any.scalar_type();
  const auto activation = check::activation<Activation>(activation_name);
  const optional<Tensor> own_lengths = contiguous(lengths);
  const Frames frames = make_frames(own_lengths, z_any.size(0), z_any.size(1));
  const int64_t rows = z_any.size(0) * z_any.size(1);
  const int64_t latent = weight_in.size(1), hidden_size = weight_in.size(0), features = weight_out.size(0);
  const Tensor z = z_any.contiguous().view({rows, latent});
  const Tensor target = target_any.contiguous().view({rows, features});

  const auto gradient = [&](at::IntArrayRef sizes) { return need_grad ? zeros_float(z, sizes) : none(z, at::kFloat); };
  Tensor grad_z = need_grad ? empty_float(z, z_any.sizes()) : none(z, at::kFloat);
  Tensor grad_in = gradient({hidden_size, latent}), grad_bias_in = gradient({hidden_size});
  Tensor grad_out = gradient({features, hidden_size}), grad_bias_out = gradient({features});

  const int64_t chunk = rows_per_chunk((features + 3 * hidden_size + latent) * z.element_size());
  const int64_t chunks = (rows + chunk - 1) / chunk;
  const Tensor totals = empty_float(z, {chunks}, at::kDouble);
  for (int64_t i = 0; i < chunks; ++i) {
    const int64_t row = i * chunk, count = std::min(chunk, rows - row);
    Tensor latents = z.narrow(0, row, count);
    if (frames.lengths != nullptr) {  // NaN past a length must not reach a product
      const Tensor valid = empty_float(z, {count, latent}, type);
      check(copy_valid_rows(dtype, data(latents), data(valid), count, latent, row, frames, stream()));
      latents = valid;
    }
    const Tensor hidden = linear(latents, weight_in, bias_in);
    const Tensor activated = need_grad ? empty_float(z, {count, hidden_size}, type) : hidden;
    check(activate(dtype, data(hidden), data(activated), hidden.numel(), activation, stream()));
    const Tensor restored = linear(activated, weight_out, bias_out);

    Tensor targets = target.narrow(0, row, count);
    if (targets.scalar_type() == at::kDouble) targets = targets.to(at::kFloat);
    const Tensor losses = empty_float(z, {count});
    NormalizedRows a;
    a.restored = data(restored);
    a.target = data(targets);
    a.loss = static_cast<float*>(data(losses));
    a.rows = count;
    a.features = features;
    a.first_row = row;
    a.frames = frames;
    a.write_grad = need_grad;
    check(normalized_rows(dtype, dtype_of("target", targets), a, stream()));
    check(sum_terms(a.loss, 1, count, totals.data_ptr<double>() + i, stream()));
    if (!need_grad) continue;

    const Tensor& grad_restored = restored;  // in the same memory by now
    grad_out.add_(product_float(grad_restored.t(), activated));
    sum_columns(grad_restored, grad_bias_out, true);
    const Tensor grad_hidden = at::mm(grad_restored, weight_out);
    check(multiply_by_derivative(dtype, data(grad_hidden), data(hidden), hidden.numel(), activation, stream()));
    grad_in.add_(product_float(grad_hidden.t(), latents));
    sum_columns(grad_hidden, grad_bias_in, true);
    grad_z.view({rows, latent}).narrow(0, row, count).copy_(product_float(grad_hidden, weight_in));
  }

  const Tensor loss = empty_float(z, {}), scale = empty_float(z, {});
  const MeanOver mean{frames, false, -1, features};
  check(finish_mean(static_cast<const double*>(data(totals)), chunks, mean, loss.data_ptr<float>(),
                    scale.data_ptr<float>(), stream()));
  if (need_grad) {
    for (Tensor* grad : {&grad_z, &grad_in, &grad_bias_in, &grad_out, &grad_bias_out}) grad->mul_(scale);
  }
  return {loss, grad_z, grad_in, grad_bias_in, grad_out, grad_bias_out};
}

}  // namespace
}  // namespace losatok::cuda

TORCH_LIBRARY_IMPL(losatok, CUDA, m) {
  m.impl("bottleneck_project_forward", losatok::cuda::project_forward_op);
  m.impl("bottleneck_project_backward", losatok::cuda::project_backward_op);
  m.impl("normalized_reconstruction_loss_forward", losatok::cuda::normalized_reconstruction_loss_op);
}
