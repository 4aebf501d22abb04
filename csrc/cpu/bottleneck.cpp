// The bottleneck ops on the CPU: matrix products through ATen (MKL, oneDNN) over blocks of rows, so that what lies
// between two products stays in the cache, with the row kernels of simd/bottleneck.cpp between them.
#include "cpu/simd/bottleneck.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <string_view>
#include <tuple>
#include <vector>

#include "cpu/isa.h"

namespace losatok {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

Activation activation_of(std::string_view name) {
  if (name == "gelu") return Activation::kGelu;
  if (name == "gelu_tanh") return Activation::kGeluTanh;
  if (name == "silu") return Activation::kSilu;
  if (name == "relu") return Activation::kRelu;
  if (name == "none") return Activation::kNone;
  TORCH_CHECK_VALUE(false, "activation should be one of gelu, gelu_tanh, silu, relu, none, got ", name);
}

// The dtype of the products. Half-precision products are as slow as scalar code where the processor has no instruction
// for them: float takes their place, a block at a time. fp16 always: no processor here multiplies it in hardware.
at::ScalarType product_type(at::ScalarType type) {
#if defined(__x86_64__)
  static const bool fast_bf16 = isa() == Isa::kAvx512 && __builtin_cpu_supports("avx512bf16");
#else
  constexpr bool fast_bf16 = false;
#endif
  return type == at::kHalf || (type == at::kBFloat16 && !fast_bf16) ? at::kFloat : type;
}

template <class Function>
void by_type(at::ScalarType type, Function&& function) {
  if (type == at::kDouble)
    function.template operator()<double>();
  else if (type == at::kBFloat16)
    function.template operator()<Bf16>();
  else
    function.template operator()<float>();
}

template <class T>
T* data(const Tensor& tensor) {
  return tensor.defined() ? static_cast<T*>(tensor.data_ptr()) : nullptr;
}

// What a worker thread does not inherit: no autograd, no autocast inside the op.
struct PlainTensors {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
};

// Rows in blocks, and blocks in tasks. Several tasks run side by side, each product on one thread: without a barrier
// between products that is faster than sharing each, and much faster on a busy machine. One task, for few rows, shares
// each product. What tasks sum goes into one accumulator per task: a result depends on the number of threads, never on
// their timing.
constexpr int64_t kBlockRows = 512;  // the hidden block, 1 MB in float at H = 512, stays in the second-level cache
constexpr int64_t kTaskRows = 16;    // fewer rows than this for each thread are one task

struct Plan {
  int64_t rows, block, tasks;

  explicit Plan(int64_t rows_) : rows(rows_) {
    const int64_t threads = at::in_parallel_region() ? 1 : at::get_num_threads();
    tasks = rows >= threads * kTaskRows ? threads : 1;
    block = std::max<int64_t>(1, std::min(kBlockRows, (rows + tasks - 1) / tasks));
  }

  int64_t first(int64_t task) const { return rows * task / tasks; }

  template <class Function>
  void run(Function&& function) const {  // function(task)
    at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
      PlainTensors guard;
      for (int64_t task = begin; task < end; ++task) function(task);
    });
  }
};

// Splits a kernel over rows where a thread's share is worth its start.
template <class Function>
void over_rows(int64_t rows, int64_t columns, Function&& function) {
  at::parallel_for(0, rows, std::max<int64_t>(1, 16384 / columns), function);
}

// out = x weight^T; a bias is added by the product where the activation kernel does not do it.
void product(Tensor out, const Tensor& x, const Tensor& weight, const Tensor& bias) {
  if (bias.defined())
    at::addmm_out(out, bias, x, weight.t());
  else
    at::mm_out(out, x, weight.t());
}

Tensor as(const OptionalTensor& tensor, at::ScalarType type) {
  return tensor && tensor->defined() ? tensor->to(type).contiguous() : Tensor();
}

at::ScalarType accumulator_type(at::ScalarType type) { return type == at::kDouble ? at::kDouble : at::kFloat; }

// pre and out [rows, H]: hidden values before and after the activation (one tensor: only those after), from x
// [rows, D].
template <class T>
void hidden_block(const Tensor& x, const Tensor& weight, const Tensor& bias, Activation activation, const Tensor& pre,
                  const Tensor& out) {
  // bf16 is rounded once, so its bias is added inside the product; float adds it on the way through the activation.
  constexpr bool inside = std::is_same_v<T, Bf16>;
  product(pre, x, weight, inside ? bias : Tensor());
  const T* add = inside ? nullptr : data<T>(bias);
  T *from = data<T>(pre), *to = data<T>(out);
  const bool keep = add && from != to;
  const int64_t columns = pre.size(1);
  over_rows(pre.size(0), columns, [&](int64_t begin, int64_t end) {
    const int64_t offset = begin * columns;
    LOSATOK_SIMD(activate<T>)
    (activation, from + offset, add, keep ? from + offset : nullptr, to + offset, end - begin, columns);
  });
}

// grad [rows, H] becomes the gradient before the activation, out the hidden values after it; sums [H] grows by grad's
// sum.
template <class T>
void hidden_block_backward(const Tensor& pre, const Tensor& grad, Activation activation, const Tensor& out,
                           const Tensor& sums) {
  // On one thread: the column sums are shared, and few rows are not worth more.
  LOSATOK_SIMD(activate_backward<T>)
  (activation, data<T>(pre), data<T>(grad), data<T>(out), data<wide_t<T>>(sums), pre.size(0), pre.size(1));
}

// sum += a^T b, in float for bf16, whose product is rounded once per block.
void add_outer(const Tensor& sum, const Tensor& a, const Tensor& b) {
  if (a.scalar_type() == sum.scalar_type()) {
    Tensor out = sum;
    at::addmm_out(out, sum, a.t(), b);
    return;
  }
  const Tensor part = at::mm(a.t(), b);
  const Bf16* from = data<Bf16>(part);
  float* to = data<float>(sum);
  at::parallel_for(0, part.numel(), 65536, [&](int64_t begin, int64_t end) {
    LOSATOK_SIMD(accumulate)(from + begin, to + begin, end - begin);
  });
}

// The gradients of the parameters, summed over a task's blocks.
struct ParameterSums {
  Tensor weight_in, bias_in, weight_out, bias_out;

  ParameterSums(const Tensor& w_in, const Tensor& w_out) {
    const auto options = w_in.options().dtype(accumulator_type(w_in.scalar_type()));
    weight_in = at::zeros(w_in.sizes(), options);
    bias_in = at::zeros({w_in.size(0)}, options);
    weight_out = at::zeros(w_out.sizes(), options);
    bias_out = at::zeros({w_out.size(0)}, options);
  }

  void add(const ParameterSums& other) {
    weight_in.add_(other.weight_in);
    bias_in.add_(other.bias_in);
    weight_out.add_(other.weight_out);
    bias_out.add_(other.bias_out);
  }
};

// The public functions say this better; here it keeps raw calls from reading past a tensor.
void check_parameters(int64_t features, const Tensor& weight_in, const OptionalTensor& bias_in,
                      const Tensor& weight_out, const OptionalTensor& bias_out) {
  TORCH_CHECK_VALUE(weight_in.dim() == 2 && weight_in.size(1) == features, "weight_in should have shape [H, ", features,
                    "], got ", weight_in.sizes());
  TORCH_CHECK_VALUE(weight_out.dim() == 2 && weight_out.size(1) == weight_in.size(0),
                    "weight_out should have shape [*, ", weight_in.size(0), "], got ", weight_out.sizes());
  TORCH_CHECK_VALUE(!bias_in || !bias_in->defined() || bias_in->sizes() == weight_in.sizes().slice(0, 1),
                    "bias_in should have shape [", weight_in.size(0), "]");
  TORCH_CHECK_VALUE(!bias_out || !bias_out->defined() || bias_out->sizes() == weight_out.sizes().slice(0, 1),
                    "bias_out should have shape [", weight_out.size(0), "]");
}

std::tuple<Tensor, Tensor> project_forward(const Tensor& x, const Tensor& weight_in, const OptionalTensor& bias_in,
                                           const Tensor& weight_out, const OptionalTensor& bias_out,
                                           c10::string_view activation_name, bool keep_hidden) {
  PlainTensors guard;
  const Activation activation = activation_of(activation_name);
  TORCH_CHECK_VALUE(x.dim() == 2, "x should have shape [N, D], got ", x.sizes());
  check_parameters(x.size(1), weight_in, bias_in, weight_out, bias_out);
  const int64_t rows = x.size(0), width = weight_in.size(0);
  const at::ScalarType type = product_type(x.scalar_type());
  const bool same = type == x.scalar_type();
  const Tensor w_in = weight_in.to(type), w_out = weight_out.to(type), b_in = as(bias_in, type),
               b_out = as(bias_out, type);
  Tensor z = at::empty({rows, weight_out.size(0)}, x.options());
  Tensor hidden = at::empty({keep_hidden ? rows : 0, width}, x.options());
  const Plan plan(rows);
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
        const Tensor out = outs.narrow(0, 0, count);
        const Tensor pre = !keep_hidden ? out : same ? hidden.narrow(0, begin, count) : pres.narrow(0, 0, count);
        hidden_block<T>(x.narrow(0, begin, count).to(type), w_in, b_in, activation, pre, out);
        if (keep_hidden && !same) hidden.narrow(0, begin, count).copy_(pre);
        const Tensor block = same ? z.narrow(0, begin, count) : zs.narrow(0, 0, count);
        product(block, out, w_out, b_out);
        if (!same) z.narrow(0, begin, count).copy_(block);
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
  const Activation activation = activation_of(activation_name);
  TORCH_CHECK_VALUE(x.dim() == 2, "x should have shape [N, D], got ", x.sizes());
  check_parameters(x.size(1), weight_in, {}, weight_out, {});
  TORCH_CHECK_VALUE(hidden.dim() == 2 && hidden.size(0) == x.size(0) && hidden.size(1) == weight_in.size(0),
                    "hidden should be what the forward kept, [", x.size(0), ", ", weight_in.size(0), "], got ",
                    hidden.sizes());
  TORCH_CHECK_VALUE(grad.dim() == 2 && grad.size(0) == x.size(0) && grad.size(1) == weight_out.size(0),
                    "grad should have shape [", x.size(0), ", ", weight_out.size(0), "], got ", grad.sizes());
  const int64_t rows = x.size(0), width = weight_in.size(0);
  const at::ScalarType type = product_type(x.scalar_type());
  const bool same = type == x.scalar_type();
  const Tensor w_in = weight_in.to(type), w_out = weight_out.to(type), pres = hidden.contiguous();
  Tensor grad_x = at::empty(need_x ? x.sizes() : at::IntArrayRef{0}, x.options());
  const Plan plan(rows);
  std::vector<std::optional<ParameterSums>> sums(plan.tasks);
  by_type(type, [&]<class T>() {
    plan.run([&](int64_t task) {
      if (need_parameters) sums[task].emplace(w_in, w_out);
      const Tensor bias_sums =
          need_parameters ? sums[task]->bias_in : at::zeros({width}, w_in.options().dtype(accumulator_type(type)));
      const Tensor outs = at::empty({plan.block, width}, w_in.options()), grads = at::empty_like(outs);
      const int64_t last = plan.first(task + 1);
      for (int64_t begin = plan.first(task); begin < last; begin += plan.block) {
        const int64_t count = std::min(plan.block, last - begin);
        const Tensor grad_z = grad.narrow(0, begin, count).to(type), pre = pres.narrow(0, begin, count).to(type);
        Tensor out = outs.narrow(0, 0, count), grad_hidden = grads.narrow(0, 0, count);
        at::mm_out(grad_hidden, grad_z, w_out);
        hidden_block_backward<T>(pre, grad_hidden, activation, out, bias_sums);
        if (need_parameters) {
          add_outer(sums[task]->weight_out, grad_z, out);
          add_outer(sums[task]->weight_in, grad_hidden, x.narrow(0, begin, count).to(type));
          sums[task]->bias_out.add_(grad_z.sum(0, false, sums[task]->bias_out.scalar_type()));
        }
        if (need_x) {
          Tensor block = grad_x.narrow(0, begin, count);
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
  for (int64_t task = 1; task < plan.tasks; ++task) sums[0]->add(*sums[task]);
  const at::ScalarType to = x.scalar_type();
  return {grad_x, sums[0]->weight_in.to(to), sums[0]->bias_in.to(to), sums[0]->weight_out.to(to),
          sums[0]->bias_out.to(to)};
}

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
  TORCH_CHECK_VALUE(z.dim() == 3, "z should have shape [B, T, d], got ", z.sizes());
  check_parameters(z.size(2), weight_in, bias_in, weight_out, bias_out);
  TORCH_CHECK_VALUE(target.dim() == 3 && target.size(0) == z.size(0) && target.size(1) == z.size(1) &&
                        target.size(2) == weight_out.size(0),
                    "target should have shape [", z.size(0), ", ", z.size(1), ", ", weight_out.size(0), "], got ",
                    target.sizes());
  TORCH_CHECK_VALUE(!lengths || !lengths->defined() || lengths->sizes() == z.sizes().slice(0, 1),
                    "lengths should have shape [B] = ", z.sizes().slice(0, 1));
  const Activation activation = activation_of(activation_name);
  const at::ScalarType type = product_type(z.scalar_type()), sum_type = accumulator_type(type);
  const Tensor w_in = weight_in.to(type), w_out = weight_out.to(type), b_in = as(bias_in, type),
               b_out = as(bias_out, type);
  const int64_t columns = target.size(2), width = w_in.size(0), low = z.size(2);
  const ValidFrames frames(z, lengths);
  const auto sum_options = z.options().dtype(sum_type);
  // Frames that are not valid take a zero gradient; the others are written by their block.
  Tensor grad_z = need_grad ? at::zeros(z.sizes(), sum_options) : at::empty({0}, sum_options);
  // The target is read where it lies if its rows are contiguous and of a dtype the kernel knows.
  const bool as_float = target.scalar_type() == at::kFloat && type != at::kDouble;
  const bool in_place = target.stride(2) == 1 && (target.scalar_type() == type || as_float);
  const Plan plan(frames.count());
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
        const auto block = [&](const Tensor& tensor) { return tensor.narrow(0, 0, count); };
        const Tensor x = block(zs), pre = block(pres), out = block(outs);
        Tensor restored = block(restoreds);
        frames.runs(begin, end, [&](int64_t row, int64_t clip, int64_t frame, int64_t n) {
          x.narrow(0, row, n).copy_(z.select(0, clip).narrow(0, frame, n));
        });
        hidden_block<T>(x, w_in, b_in, activation, pre, out);
        product(restored, out, w_out, b_out);
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
        add_outer(sums[task]->weight_out, restored, out);
        hidden_block_backward<T>(pre, grad_hidden, activation, out, sums[task]->bias_in);
        add_outer(sums[task]->weight_in, grad_hidden, x);
        const Tensor grad_x = at::mm(grad_hidden, w_in);
        frames.runs(begin, end, [&](int64_t row, int64_t clip, int64_t frame, int64_t n) {
          grad_z.select(0, clip).narrow(0, frame, n).copy_(grad_x.narrow(0, row, n));
        });
      }
      losses[task] = loss;
    });
  });
  double total = 0;
  for (int64_t task = 0; task < plan.tasks; ++task) total += losses[task];
  const double scale = 1.0 / (static_cast<double>(std::max<int64_t>(1, frames.count())) * columns);
  Tensor loss = at::scalar_tensor(total * scale, sum_options);
  if (!need_grad) {
    const auto none = [&] { return at::empty({0}, sum_options); };
    return {loss, grad_z, none(), none(), none(), none()};
  }
  for (int64_t task = 1; task < plan.tasks; ++task) sums[0]->add(*sums[task]);
  for (Tensor* tensor : {&grad_z, &sums[0]->weight_in, &sums[0]->bias_in, &sums[0]->weight_out, &sums[0]->bias_out})
    tensor->mul_(2 * scale);
  return {loss, grad_z, sums[0]->weight_in, sums[0]->bias_in, sums[0]->weight_out, sums[0]->bias_out};
}

}  // namespace
}  // namespace losatok

TORCH_LIBRARY_IMPL(losatok, CPU, m) {
  m.impl("bottleneck_project_forward", &losatok::project_forward);
  m.impl("bottleneck_project_backward", &losatok::project_backward);
  m.impl("normalized_reconstruction_loss_forward", &losatok::loss_forward);
}
