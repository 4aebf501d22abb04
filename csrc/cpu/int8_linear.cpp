// int8_linear on the CPU: a block of the weight is widened into the second cache, where all rows of x meet it. int8 are
// exact in bfloat16, so the weight is not rounded again, and no widened copy of it stays.
#include "cpu/simd/int8_linear.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>

#include "cpu/block_products.h"
#include "cpu/bottleneck.h"

namespace losatok::int8 {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr int64_t kColumns = 128;  // of y in a block
constexpr int64_t kDepth = 640;    // features in a block, at most: 160 KB of bfloat16
constexpr int64_t kRows = 128;     // of a product; then what is left of them in whole steps
constexpr int64_t kStep = 16;
constexpr int64_t kPanel = 512;  // rows that a widened block serves at once: their sums stay in the cache

template <class P>
struct Rows {  // of x, `stride` apart
  const P* data;
  int64_t count, stride;
};

// sums [rows, kColumns] += x [rows, features from `depth`] times the operand [features, kColumns]
template <class P>
void add_products(const Rows<P>& x, int64_t depth, int64_t features, const P* operand, float* sums) {
  for (int64_t row = 0, size; row < x.count; row += size) {
    size = std::min(kRows, x.count - row);
    multiply_blocks(size, kColumns, features, x.data + row * x.stride + depth, x.stride, operand, sums + row * kColumns,
                    depth > 0);
  }
}

// x in the type of the products, with an even number of features. Rows are an odd number of cache lines apart: at a
// power of two they would all meet in a few places of the first cache.
Tensor operand_of(const Tensor& x, at::ScalarType type) {
  const int64_t line = type == at::kBFloat16 ? 32 : 16, lines = round_up(x.size(1), line) / line;
  const Tensor rows = at::empty({x.size(0), (lines | 1) * line}, x.options().dtype(type));
  rows.narrow(1, 0, x.size(1)).copy_(x);
  if (x.size(1) % 2) rows.narrow(1, x.size(1), 1).zero_();
  return rows;
}

// T is the type of y, P that of the products.
template <class T, class P>
void forward_of(const Tensor& x, const Tensor& weight, const float* scale, const float* bias, Activation activation,
                const Tensor& y) {
  const int64_t rows = x.size(0), features = weight.size(1), columns = weight.size(0), whole = rows / kStep * kStep;
  // Rows that do not fill a step, with zeros behind them.
  Tensor rest;
  if (whole < rows) {
    rest = at::zeros({kStep, x.size(1)}, x.options());
    rest.narrow(0, 0, rows - whole).copy_(x.narrow(0, whole, rows - whole));
  }
  const P *data = static_cast<const P*>(x.const_data_ptr()),
          *last = rest.defined() ? static_cast<const P*>(rest.const_data_ptr()) : nullptr;
  const int8_t* weights = weight.const_data_ptr<int8_t>();
  const int64_t blocks = (columns + kColumns - 1) / kColumns, panels = (rows + kPanel - 1) / kPanel;
  at::parallel_for(0, blocks * panels, 1, [&](int64_t begin, int64_t end) {
    const Buffer<P> operand(kDepth * kColumns);
    const Buffer<float> sums(std::min(round_up(rows, kStep), kPanel) * kColumns);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t panel = item % panels * kPanel, column = item / panels * kColumns;
      const int64_t count = std::min(kPanel, rows - panel), width = std::min(kColumns, columns - column);
      const Rows<P> filled{data + panel * x.stride(0), std::min(count, whole - panel), x.stride(0)};
      const Rows<P> partial{last, filled.count < count ? kStep : 0, x.size(1)};
      for (int64_t depth = 0; depth < features; depth += kDepth) {
        const int64_t part = std::min(kDepth, features - depth);
        LOSATOK_SIMD(int8_operand<P>)
        (weights + column * features + depth, features, width, part, kColumns, round_up(part, 2 * kStep), operand);
        add_products(filled, depth, round_up(part, 2), static_cast<const P*>(operand), sums);
        add_products(partial, depth, round_up(part, 2), static_cast<const P*>(operand), sums + filled.count * kColumns);
      }
      T* to = static_cast<T*>(y.mutable_data_ptr()) + panel * columns + column;
      LOSATOK_SIMD(finish_int8<T>)
      (activation, sums, kColumns, scale + column, bias ? bias + column : nullptr, count, width, to, columns);
    }
    at::native::cpublas::brgemm_release(true);
  });
}

Tensor forward(const Tensor& x, const Tensor& weight, const Tensor& scale, const OptionalTensor& bias,
               c10::string_view activation_name) {
  PlainTensors guard;
  check::int8_linear_forward(x, weight, scale, bias);
  const auto activation = check::activation<Activation>(activation_name);
  if (x.size(1) == 0)  // y is the bias
    return forward(at::zeros({x.size(0), 1}, x.options()), at::zeros({weight.size(0), 1}, weight.options()), scale,
                   bias, activation_name);
  const at::ScalarType type = x.scalar_type();
  if (x.size(0) == 0 || weight.size(0) == 0) return at::empty({x.size(0), weight.size(0)}, x.options());
  if (type == at::kDouble) {  // there is nothing to gain
    Tensor y = at::mm(x, weight.to(type).t()).mul_(scale.to(type));
    if (bias && bias->defined()) y.add_(bias->to(type));
    bottleneck::over_rows(y.size(0), y.size(1), [&](int64_t begin, int64_t end) {
      double* rows = y.mutable_data_ptr<double>() + begin * y.size(1);
      LOSATOK_SIMD(activate<double>)(activation, rows, nullptr, nullptr, rows, end - begin, y.size(1));
    });
    return y;
  }
  const Tensor w = weight.contiguous(), scales = scale.to(at::kFloat).contiguous();
  const Tensor biases = bottleneck::as(bias, at::kFloat);
  const bool half = type == at::kBFloat16;
  const Tensor y = at::empty({x.size(0), w.size(0)}, x.options().dtype(half ? type : at::kFloat));
  const Tensor left = operand_of(x, half && multiplies_bfloat16() ? type : at::kFloat);
  const auto run = [&]<class T, class P>() {
    forward_of<T, P>(left, w, scales.const_data_ptr<float>(), bottleneck::data<float>(biases), activation, y);
  };
  if (!half)
    run.operator()<float, float>();
  else if (multiplies_bfloat16())
    run.operator()<Bf16, Bf16>();
  else
    run.operator()<Bf16, float>();
  return y.to(type);
}

}  // namespace
}  // namespace losatok::int8

TORCH_LIBRARY_IMPL(losatok, CPU, m) { m.impl("int8_linear_forward", &losatok::int8::forward); }
