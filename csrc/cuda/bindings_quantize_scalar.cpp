// Quantization without a codebook on CUDA tensors.
#include <torch/library.h>

#include <cmath>
#include <tuple>

#include "checks/quantize_scalar.h"
#include "cuda/bindings.h"
#include "cuda/quantize_scalar.h"

namespace losatok::cuda {
namespace {

using at::Tensor;
using std::optional;

constexpr double kMargin = 1e-3;  // of the bound, see losatok_ext.ops.fsq_quantize

Levels make_levels(at::IntArrayRef counts) {  // that were checked, and so are at most kMaxLevels
  Levels levels = {};
  levels.features = static_cast<int>(counts.size());
  for (int j = 0; j < levels.features; ++j) {
    const double half_range = (counts[j] - 1) * (1 + kMargin) / 2, offset = counts[j] % 2 ? 0. : .5;
    levels.count[j] = static_cast<int>(counts[j]);
    levels.half_range[j] = static_cast<float>(half_range);
    levels.offset[j] = static_cast<float>(offset);
    levels.shift[j] = static_cast<float>(std::atanh(offset / half_range));
  }
  return levels;
}

LevelRows make_rows(const Tensor& x, const Frames& frames) {
  return {data(x), x.stride(0), x.stride(1), x.stride(2), frames};
}

// The type of a result, by name.
DType output_dtype(const Tensor& out) {
  TORCH_CHECK_TYPE(out.scalar_type() != at::kDouble,
                   "dtype is float64; the CUDA kernels give float32, bfloat16 and float16 (use_backend('reference') "
                   "gives float64)");
  return dtype_of("dtype", out);
}

std::tuple<Tensor, Tensor> fsq_quantize_forward_op(const Tensor& x, at::IntArrayRef counts,
                                                   const optional<Tensor>& lengths) {
  check::fsq_quantize_forward(x, counts, lengths);
  const c10::cuda::CUDAGuard guard(x.device());
  const DType dtype = dtype_of("x", x);
  const Levels levels = make_levels(counts);
  const optional<Tensor> own_lengths = contiguous(lengths);
  const Frames frames = make_frames(own_lengths, x.size(0), x.size(1));
  const Tensor quantized = empty_float(x, x.sizes(), x.scalar_type());
  const Tensor indices = empty_float(x, {x.size(0), x.size(1)}, at::kLong);
  check(fsq_quantize(dtype, make_rows(x, frames), levels, data(quantized), static_cast<int64_t*>(data(indices)),
                     stream()));
  return {quantized, indices};
}

Tensor fsq_quantize_backward_op(const Tensor& grad_any, const Tensor& x, at::IntArrayRef counts,
                                const optional<Tensor>& lengths) {
  check::fsq_quantize_backward(grad_any, x, counts, lengths);
  const c10::cuda::CUDAGuard guard(x.device());
  const DType dtype = dtype_of("x", x);
  const Tensor grad = grad_any.to(at::kFloat).contiguous();
  const optional<Tensor> own_lengths = contiguous(lengths);
  const Frames frames = make_frames(own_lengths, x.size(0), x.size(1));
  const Tensor grad_x = empty_float(x, x.sizes(), x.scalar_type());
  check(fsq_gradient(dtype, make_rows(x, frames), make_levels(counts), static_cast<const float*>(data(grad)),
                     data(grad_x), stream()));
  return grad_x;
}

Tensor fsq_dequantize_forward_op(const Tensor& indices_any, at::IntArrayRef counts, at::ScalarType type) {
  const int64_t size = check::fsq_dequantize_forward(indices_any, counts, type);
  const c10::cuda::CUDAGuard guard(indices_any.device());
  const Tensor indices = indices_any.contiguous();
  const Levels levels = make_levels(counts);
  const Tensor values = empty_float(indices, {indices.numel(), levels.features}, type);
  check(fsq_dequantize(output_dtype(values), static_cast<const int64_t*>(data(indices)), indices.numel(), size, levels,
                       data(values), stream()));
  return values;
}

std::tuple<Tensor, Tensor, Tensor> affine_quantize_forward_op(const Tensor& x_any, int64_t bits) {
  check::affine_quantize_forward(x_any, bits);
  const c10::cuda::CUDAGuard guard(x_any.device());
  const DType dtype = dtype_of("x", x_any);
  const Tensor x = packed_features(x_any);
  const int64_t rows = x.size(0), columns = x.size(1);
  const Tensor packed = empty_float(x, {rows, bits == 8 ? columns : (columns + 1) / 2}, at::kByte);
  if (columns == 0) return {packed, zeros_float(x, {rows}), zeros_float(x, {rows})};
  const Tensor scale = empty_float(x, {rows}), offset = empty_float(x, {rows});
  check(affine_quantize(dtype, data(x), rows, columns, x.stride(0), static_cast<int>(bits),
                        static_cast<uint8_t*>(data(packed)), static_cast<float*>(data(scale)),
                        static_cast<float*>(data(offset)), stream()));
  return {packed, scale, offset};
}

Tensor affine_dequantize_forward_op(const Tensor& packed_any, const Tensor& scale_any, const Tensor& offset_any,
                                    int64_t bits, int64_t columns, at::ScalarType type) {
  check::affine_dequantize_forward(packed_any, scale_any, offset_any, bits, columns, type);
  const c10::cuda::CUDAGuard guard(packed_any.device());
  const Tensor packed = packed_any.contiguous();
  const Tensor scale = scale_any.to(at::kDouble).contiguous(), offset = offset_any.to(at::kDouble).contiguous();
  const Tensor values = empty_float(packed, {packed.size(0), columns}, type);
  check(affine_dequantize(output_dtype(values), static_cast<const uint8_t*>(data(packed)),
                          static_cast<const double*>(data(scale)), static_cast<const double*>(data(offset)),
                          packed.size(0), columns, static_cast<int>(bits), data(values), stream()));
  return values;
}

}  // namespace
}  // namespace losatok::cuda

TORCH_LIBRARY_IMPL(losatok, CUDA, m) {
  m.impl("fsq_quantize_forward", losatok::cuda::fsq_quantize_forward_op);
  m.impl("fsq_quantize_backward", losatok::cuda::fsq_quantize_backward_op);
  m.impl("fsq_dequantize_forward", losatok::cuda::fsq_dequantize_forward_op);
  m.impl("affine_quantize_forward", losatok::cuda::affine_quantize_forward_op);
  m.impl("affine_dequantize_forward", losatok::cuda::affine_dequantize_forward_op);
}
