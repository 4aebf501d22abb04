// What the bottleneck ops on the CPU share: rows in blocks, the hidden block forward and backward, and the sums of
// parameter gradients. Matrix products go through ATen (MKL, oneDNN).
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <optional>
#include <type_traits>
#include <vector>

#include "checks/bottleneck.h"
#include "cpu/block_products.h"
#include "cpu/isa.h"
#include "cpu/plain_tensors.h"
#include "cpu/simd/bottleneck.h"

namespace losatok::bottleneck {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// The dtype of the products. Half-precision products are as slow as scalar code where the processor has no instruction
// for them: float takes their place, a block at a time. fp16 always: torch's own fp16 products were 5 times slower
// where measured.
inline at::ScalarType product_type(at::ScalarType type) {
  return type == at::kHalf || (type == at::kBFloat16 && !multiplies_bfloat16()) ? at::kFloat : type;
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

// Rows in blocks, and blocks in tasks. Several tasks run side by side, each product on one thread: without a barrier
// between products that is faster than sharing each, and much faster on a busy machine. One task, for few rows, shares
// each product. What tasks sum goes into one accumulator per task: a result depends on the number of threads, never on
// their timing.
inline constexpr int64_t kBlockBytes = 1 << 20;  // of hidden values: with them a block's work stays in cache
inline constexpr int64_t kTaskRows = 64;         // fewer rows than this for each thread are one task

struct Plan {
  int64_t rows, block, tasks;

  // Hidden values are [rows, width], of item bytes each.
  Plan(int64_t rows_, int64_t width, int64_t item, int64_t task_rows = kTaskRows, int64_t block_bytes = kBlockBytes)
      : rows(rows_) {
    const int64_t threads = at::in_parallel_region() ? 1 : at::get_num_threads();
    tasks = rows >= threads * task_rows ? threads : 1;
    const int64_t most = std::clamp<int64_t>(block_bytes / std::max<int64_t>(1, width * item), 64, 4096);
    const int64_t share = std::max<int64_t>(1, (rows + tasks - 1) / tasks), blocks = (share + most - 1) / most;
    block = (share + blocks - 1) / blocks;  // of one size, so that none is a small remainder
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
  at::parallel_for(0, rows, std::max<int64_t>(1, 16384 / std::max<int64_t>(1, columns)), function);
}

// Up to how many rows few_rows is faster than the libraries, as measured for 1280 -> 512 -> 128. Where there are tile
// registers (AMX), oneDNN multiplies bf16 so fast that only its packing is worth saving.
template <class T>
int64_t few_rows_limit() {
  if constexpr (std::is_same_v<T, double>) return -1;
  if constexpr (std::is_same_v<T, float>) return 24;
#if defined(__x86_64__)
  static const int64_t bf16 = __builtin_cpu_supports("amx-bf16") ? 4 : 32;
  return bf16;
#else
  return 32;
#endif
}

template <class T>
bool few(const Tensor& x, const Tensor& weight, const Tensor& out) {
  return x.size(0) <= few_rows_limit<T>() && x.stride(1) == 1 && weight.is_contiguous() && out.is_contiguous();
}

// out = x weight^T + bias (undefined: none); then after(first, last) on the same thread, which has columns [first,
// last).
template <class T, class After>
void few_rows_product(const Tensor& out, const Tensor& x, const Tensor& weight, const Tensor& bias, After&& after) {
  if constexpr (!std::is_same_v<T, double>) {
    const int64_t rows = x.size(0), features = x.size(1);
    const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, rows * features));
    at::parallel_for(0, weight.size(0), grain, [&](int64_t first, int64_t last) {
      LOSATOK_SIMD(few_rows<T>)
      (data<T>(x), x.stride(0), rows, data<T>(weight), features, data<T>(bias), data<T>(out), out.size(1), first, last);
      after(first, last);
    });
  }
}

// out = x weight^T + bias (undefined: none)
template <class T>
void product(Tensor out, const Tensor& x, const Tensor& weight, const Tensor& bias) {
  if (few<T>(x, weight, out))
    few_rows_product<T>(out, x, weight, bias, [](int64_t, int64_t) {});
  else if (bias.defined())
    at::addmm_out(out, bias, x, weight.t());
  else
    at::mm_out(out, x, weight.t());
}

// tensor.to(type) and tensor.narrow(0, begin, count) without a call where there is nothing to do: on few rows, calls
// are what takes the time.
inline Tensor as(const Tensor& tensor, at::ScalarType type) {
  return tensor.scalar_type() == type ? tensor : tensor.to(type);
}

inline Tensor as(const OptionalTensor& tensor, at::ScalarType type) {
  return tensor && tensor->defined() ? as(*tensor, type).contiguous() : Tensor();
}

inline Tensor rows_of(const Tensor& tensor, int64_t begin, int64_t count) {
  return count == tensor.size(0) ? tensor : tensor.narrow(0, begin, count);
}

// pre and out [rows, H]: hidden values before and after the activation (one tensor: only those after), from x
// [rows, D].
template <class T>
void hidden_block(const Tensor& x, const Tensor& weight, const Tensor& bias, Activation activation, const Tensor& pre,
                  const Tensor& out) {
  const int64_t columns = pre.size(1);
  if (few<T>(x, weight, pre)) {
    few_rows_product<T>(pre, x, weight, bias, [&](int64_t first, int64_t last) {
      for (int64_t row = 0; row < pre.size(0); ++row) LOSATOK_SIMD(activate<T>)
      (activation, data<T>(pre) + row * columns + first, nullptr, nullptr, data<T>(out) + row * columns + first, 1,
       last - first);
    });
    return;
  }
  // bf16 is rounded once, so its bias is added inside the product; float adds it on the way through the activation.
  constexpr bool inside = std::is_same_v<T, Bf16>;
  product<T>(pre, x, weight, inside ? bias : Tensor());
  const T* add = inside ? nullptr : data<T>(bias);
  T *from = data<T>(pre), *to = data<T>(out);
  const bool keep = add && from != to;
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

// The gradients of the parameters, summed over a task's blocks: in float for bf16, but for a single block.
struct ParameterSums {
  Tensor weight_in, bias_in, weight_out, bias_out;

  ParameterSums(const Tensor& w_in, const Tensor& w_out) {
    const auto options = w_in.options().dtype(check::wide_type(w_in.scalar_type()));
    bias_in = at::zeros({w_in.size(0)}, options);
    bias_out = at::zeros({w_out.size(0)}, options);
  }

  // sum += a^T b; the first block is stored as the product leaves it, bf16 included.
  static void add_outer(Tensor& sum, const Tensor& a, const Tensor& b) {
    if (!sum.defined())
      sum = at::mm(a.t(), b);
    else if (a.scalar_type() == at::kBFloat16)
      add(sum, at::mm(a.t(), b));
    else
      at::addmm_out(sum, sum, a.t(), b);
  }

  static void add(Tensor& sum, const Tensor& part) {
    sum = sum.to(check::wide_type(sum.scalar_type()));
    if (part.scalar_type() != at::kBFloat16) {
      sum.add_(part);
      return;
    }
    const Bf16* from = data<Bf16>(part);
    float* to = data<float>(sum);
    at::parallel_for(0, part.numel(), 65536, [&](int64_t begin, int64_t end) {
      LOSATOK_SIMD(accumulate)(from + begin, to + begin, end - begin);
    });
  }

  // Adds the sums of the other tasks. Without a single row: zeros.
  static ParameterSums total(std::vector<std::optional<ParameterSums>>& tasks, const Tensor& w_in,
                             const Tensor& w_out) {
    ParameterSums& all = *tasks[0];
    for (size_t task = 1; task < tasks.size(); ++task) {
      add(all.weight_in, tasks[task]->weight_in);
      add(all.bias_in, tasks[task]->bias_in);
      add(all.weight_out, tasks[task]->weight_out);
      add(all.bias_out, tasks[task]->bias_out);
    }
    if (!all.weight_in.defined()) {
      all.weight_in = at::zeros_like(w_in);
      all.weight_out = at::zeros_like(w_out);
    }
    return all;
  }
};

}  // namespace losatok::bottleneck
