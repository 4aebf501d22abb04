// normalized_reconstruction_loss on the CPU: value and gradients in one pass over blocks of frames.
#include <torch/library.h>

#include <tuple>

#include "cpu/bottleneck.h"

namespace losatok::bottleneck {
namespace {

// The frames below their clip's length, numbered through.
struct ValidFrames {
  int64_t time;
  std::vector<int64_t> starts;  // of clip b, and at the end the count of all

  ValidFrames(const Tensor& z, const OptionalTensor& lengths) : time(z.size(1)), starts(z.size(0) + 1) {
    const Tensor counts = lengths && lengths->defined() ? lengths->contiguous() : Tensor();
    for (int64_t b = 0; b < z.size(0); ++b) {
      const int64_t count = counts.defined() ? std::clamp<int64_t>(data<int64_t>(counts)[b], 0, time) : time;
      starts[b + 1] = starts[b] + count;
    }
  }

  int64_t count() const { return starts.back(); }

  // function(row, clip, frame, count) for each run of neighbouring frames among the valid ones [begin, end).
  template <class Function>
  void runs(int64_t begin, int64_t end, Function&& function) const {
    int64_t clip = std::upper_bound(starts.begin(), starts.end(), begin) - starts.begin() - 1;
    for (int64_t at = begin; at < end; ++clip) {
      const int64_t stop = std::min(end, starts[clip + 1]);
      if (stop > at) function(at - begin, clip, at - starts[clip], stop - at);
      at = std::max(at, stop);
    }
  }
};

// Pointers to rows of the target: into the tensor itself where it can be read as it is, else into a block's copy.
template <class T>
void target_rows(const Tensor& target, const ValidFrames& frames, int64_t begin, int64_t end, const Tensor& copy,
                 std::vector<const T*>& rows) {
  rows.resize(end - begin);
  frames.runs(begin, end, [&](int64_t row, int64_t clip, int64_t frame, int64_t count) {
    const T* from;
    int64_t stride;
    if (copy.defined()) {
      copy.narrow(0, row, count).copy_(target.select(0, clip).narrow(0, frame, count));
      from = data<T>(copy) + row * copy.size(1);
      stride = copy.size(1);
    } else {
      from = data<T>(target) + clip * target.stride(0) + frame * target.stride(1);
      stride = target.stride(1);
    }
    for (int64_t i = 0; i < count; ++i) rows[row + i] = from + i * stride;
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> loss_forward(
    const Tensor& z, const Tensor& target, const Tensor& weight_in, const OptionalTensor& bias_in,
    const Tensor& weight_out, const OptionalTensor& bias_out, const OptionalTensor& lengths,
    c10::string_view activation_name, bool need_grad) {
  PlainTensors guard;
  check::normalized_reconstruction_loss_forward(z, target, weight_in, bias_in, weight_out, bias_out, lengths);
  const auto activation = check::activation<Activation>(activation_name);
  const at::ScalarType type = product_type(z.scalar_type()), sum_type = check::wide_type(type);
  const Tensor w_in = as(weight_in, type), w_out = as(weight_out, type), b_in = as(bias_in, type),
               b_out = as(bias_out, type);
  const int64_t columns = target.size(2), width = w_in.size(0), low = z.size(2);
  const ValidFrames frames(z, lengths);
  const auto sum_options = z.options().dtype(sum_type);
  // Frames that are not valid take a zero gradient; the others are written by their block.
  Tensor grad_z = need_grad ? at::zeros(z.sizes(), sum_options) : at::empty({0}, sum_options);
  // The target is read where it lies if its rows are contiguous and of a dtype the kernel knows.
  const bool as_float = target.scalar_type() == at::kFloat && type != at::kDouble;
  const bool in_place = target.stride(2) == 1 && (target.scalar_type() == type || as_float);
  const Plan plan(frames.count(), width, w_in.element_size());
  std::vector<std::optional<ParameterSums>> sums(plan.tasks);
  std::vector<double> losses(plan.tasks);
  by_type(type, [&]<class T>() {
    using U = wide_t<T>;
    plan.run([&](int64_t task) {
      if (need_grad) sums[task].emplace(w_in, w_out);
      const auto buffer = [&](int64_t size) { return at::empty({plan.block, size}, w_in.options()); };
      const Tensor zs = buffer(low), pres = buffer(width), outs = need_grad ? buffer(width) : pres,
                   restoreds = buffer(columns);
      const Tensor grads = need_grad ? buffer(width) : Tensor();
      const Tensor copies = in_place ? Tensor() : at::empty({plan.block, columns}, sum_options);
      std::vector<const T*> rows;
      std::vector<const U*> wide_rows;
      double loss = 0;
      const int64_t last = plan.first(task + 1);
      for (int64_t begin = plan.first(task); begin < last; begin += plan.block) {
        const int64_t count = std::min(plan.block, last - begin), end = begin + count;
        const auto block = [&](const Tensor& tensor) { return rows_of(tensor, 0, count); };
        const Tensor x = block(zs), pre = block(pres), out = block(outs);
        Tensor restored = block(restoreds);
        frames.runs(begin, end, [&](int64_t row, int64_t clip, int64_t frame, int64_t n) {
          x.narrow(0, row, n).copy_(z.select(0, clip).narrow(0, frame, n));
        });
        hidden_block<T>(x, w_in, b_in, activation, pre, out);
        product<T>(restored, out, w_out, b_out);
        U* column_sums = need_grad ? data<U>(sums[task]->bias_out) : nullptr;
        if (std::is_same_v<T, Bf16> && (as_float || !in_place)) {
          target_rows<U>(target, frames, begin, end, copies, wide_rows);
          if constexpr (std::is_same_v<T, Bf16>)
            loss += LOSATOK_SIMD(cosine_to_float)(data<T>(restored), wide_rows.data(), need_grad, column_sums, count,
                                                  columns);
        } else {
          target_rows<T>(target, frames, begin, end, copies, rows);
          loss += LOSATOK_SIMD(cosine<T>)(data<T>(restored), rows.data(), need_grad, column_sums, count, columns);
        }
        if (!need_grad) continue;
        Tensor grad_hidden = block(grads);
        at::mm_out(grad_hidden, restored, w_out);
        ParameterSums::add_outer(sums[task]->weight_out, restored, out);
        hidden_block_backward<T>(pre, grad_hidden, activation, out, sums[task]->bias_in);
        ParameterSums::add_outer(sums[task]->weight_in, grad_hidden, x);
        const Tensor grad_x = at::mm(grad_hidden, w_in);
        frames.runs(begin, end, [&](int64_t row, int64_t clip, int64_t frame, int64_t n) {
          grad_z.select(0, clip).narrow(0, frame, n).copy_(grad_x.narrow(0, row, n));
        });
      }
      losses[task] = loss;
    });
  });
  double squares = 0;
  for (double part : losses) squares += part;
  const double scale = 1.0 / (static_cast<double>(std::max<int64_t>(1, frames.count())) * columns);
  Tensor loss = at::scalar_tensor(squares * scale, sum_options);
  if (!need_grad) {
    const auto none = [&] { return at::empty({0}, sum_options); };
    return {loss, grad_z, none(), none(), none(), none()};
  }
  const ParameterSums total = ParameterSums::total(sums, w_in, w_out);
  // Scaled last and in float: in float16, 1 / (N D) alone would underflow.
  const auto scaled = [&](const Tensor& sum) { return sum.to(sum_type).mul_(2 * scale); };
  return {loss,
          scaled(grad_z),
          scaled(total.weight_in),
          scaled(total.bias_in),
          scaled(total.weight_out),
          scaled(total.bias_out)};
}

}  // namespace
}  // namespace losatok::bottleneck

TORCH_LIBRARY_IMPL(losatok, CPU, m) {
  m.impl("normalized_reconstruction_loss_forward", &losatok::bottleneck::loss_forward);
}
