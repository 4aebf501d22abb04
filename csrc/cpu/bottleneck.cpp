// bottleneck_project on the CPU: over blocks of rows, so that what lies between two products stays in the cache.
#include "cpu/bottleneck.h"

#include <torch/library.h>

#include <tuple>

namespace losatok::bottleneck {
namespace {

std::tuple<Tensor, Tensor> project_forward(const Tensor& x, const Tensor& weight_in, const OptionalTensor& bias_in,
                                           const Tensor& weight_out, const OptionalTensor& bias_out,
                                           c10::string_view activation_name, bool keep_hidden) {
  PlainTensors guard;
  check::bottleneck_project_forward(x, weight_in, bias_in, weight_out, bias_out);
  const auto activation = check::activation<Activation>(activation_name);
  const int64_t rows = x.size(0), width = weight_in.size(0);
  const at::ScalarType type = product_type(x.scalar_type());
  const bool same = type == x.scalar_type();
  const Tensor w_in = as(weight_in, type), w_out = as(weight_out, type), b_in = as(bias_in, type),
               b_out = as(bias_out, type);
  Tensor z = at::empty({rows, weight_out.size(0)}, x.options());
  Tensor hidden = at::empty({keep_hidden ? rows : 0, width}, x.options());
  // Larger blocks than where gradients are kept beside them: each product packs its weight anew.
  const Plan plan(rows, width, w_in.element_size(), kTaskRows, 2 * kBlockBytes);
  by_type(type, [&]<class T>() {
    plan.run([&](int64_t task) {
      const int64_t last = plan.first(task + 1);
      const auto buffer = [&](bool wanted, int64_t columns) {
        return wanted ? at::empty({plan.block, columns}, w_in.options()) : Tensor();
      };
      const Tensor outs = buffer(true, width), pres = buffer(keep_hidden && !same, width),
                   zs = buffer(!same, z.size(1));
      for (int64_t begin = plan.first(task); begin < last; begin += plan.block) {
        const int64_t count = std::min(plan.block, last - begin);
        const Tensor out = rows_of(outs, 0, count);
        const Tensor pre = !keep_hidden ? out : same ? rows_of(hidden, begin, count) : rows_of(pres, 0, count);
        hidden_block<T>(as(rows_of(x, begin, count), type), w_in, b_in, activation, pre, out);
        if (keep_hidden && !same) rows_of(hidden, begin, count).copy_(pre);
        const Tensor block = same ? rows_of(z, begin, count) : rows_of(zs, 0, count);
        product<T>(block, out, w_out, b_out);
        if (!same) rows_of(z, begin, count).copy_(block);
      }
    });
  });
  return {z, hidden};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> project_backward(const Tensor& grad, const Tensor& x,
                                                                    const Tensor& hidden, const Tensor& weight_in,
                                                                    const Tensor& weight_out,
                                                                    c10::string_view activation_name, bool need_x,
                                                                    bool need_parameters) {
  PlainTensors guard;
  check::bottleneck_project_backward(grad, x, hidden, weight_in, weight_out);
  const auto activation = check::activation<Activation>(activation_name);
  const int64_t rows = x.size(0), width = weight_in.size(0);
  const at::ScalarType type = product_type(x.scalar_type());
  const bool same = type == x.scalar_type();
  const Tensor w_in = as(weight_in, type), w_out = as(weight_out, type), pres = hidden.contiguous();
  Tensor grad_x = at::empty(need_x ? x.sizes() : at::IntArrayRef{0}, x.options());
  // Each task of bf16 keeps float sums of its own, which costs more than it gains for few rows.
  const Plan plan(rows, width, w_in.element_size(), type == at::kBFloat16 ? 4 * kTaskRows : kTaskRows);
  std::vector<std::optional<ParameterSums>> sums(plan.tasks);
  by_type(type, [&]<class T>() {
    plan.run([&](int64_t task) {
      if (need_parameters) sums[task].emplace(w_in, w_out);
      const Tensor bias_sums =
          need_parameters ? sums[task]->bias_in : at::zeros({width}, w_in.options().dtype(check::wide_type(type)));
      const Tensor outs = at::empty({plan.block, width}, w_in.options()), grads = at::empty_like(outs);
      const int64_t last = plan.first(task + 1);
      for (int64_t begin = plan.first(task); begin < last; begin += plan.block) {
        const int64_t count = std::min(plan.block, last - begin);
        const Tensor grad_z = as(rows_of(grad, begin, count), type), pre = as(rows_of(pres, begin, count), type);
        Tensor out = rows_of(outs, 0, count), grad_hidden = rows_of(grads, 0, count);
        at::mm_out(grad_hidden, grad_z, w_out);
        hidden_block_backward<T>(pre, grad_hidden, activation, out, bias_sums);
        if (need_parameters) {
          ParameterSums::add_outer(sums[task]->weight_out, grad_z, out);
          ParameterSums::add_outer(sums[task]->weight_in, grad_hidden, as(rows_of(x, begin, count), type));
          sums[task]->bias_out.add_(grad_z.sum(0, false, sums[task]->bias_out.scalar_type()));
        }
        if (need_x) {
          Tensor block = rows_of(grad_x, begin, count);
          if (same)
            at::mm_out(block, grad_hidden, w_in);
          else
            block.copy_(at::mm(grad_hidden, w_in));
        }
      }
    });
  });
  if (!need_parameters) {
    const auto none = [&] { return at::empty({0}, x.options()); };
    return {grad_x, none(), none(), none(), none()};
  }
  const ParameterSums total = ParameterSums::total(sums, w_in, w_out);
  const at::ScalarType to = x.scalar_type();
  return {grad_x, total.weight_in.to(to), total.bias_in.to(to), total.weight_out.to(to), total.bias_out.to(to)};
}

}  // namespace
}  // namespace losatok::bottleneck

TORCH_LIBRARY_IMPL(losatok, CPU, m) {
  m.impl("bottleneck_project_forward", &losatok::bottleneck::project_forward);
  m.impl("bottleneck_project_backward", &losatok::bottleneck::project_backward);
}
