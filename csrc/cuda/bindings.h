// What the bindings of all families share: from tensors to what launchers take. Only bindings*.cpp include this.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <optional>

#include "cuda/launch_types.h"
#include "cuda/reduce.h"

namespace losatok::cuda {

// How much memory the parts of a computation that is cut into blocks of rows may take at a time. Tests make it small,
// so that their small shapes are cut too.
#if !defined(LOSATOK_WORKSPACE_BYTES)
#define LOSATOK_WORKSPACE_BYTES (int64_t{64} << 20)
#endif
constexpr int64_t kWorkspaceBytes = LOSATOK_WORKSPACE_BYTES;

inline DType dtype_of(const char* name, const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return DType::kFloat;
    case at::kBFloat16:
      return DType::kBFloat16;
    case at::kHalf:
      return DType::kHalf;
    default:
      TORCH_CHECK_TYPE(
          false, name, " is ", tensor.scalar_type(),
          "; the CUDA kernels take float32, bfloat16 and float16 (use_backend('reference') takes float64)");
  }
}

inline void check(cudaError_t error) { C10_CUDA_CHECK(error); }

inline cudaStream_t stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

inline int processors() {
  int device = 0, count = 1;
  check(cudaGetDevice(&device));
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

inline void* data(const at::Tensor& tensor) { return tensor.numel() ? tensor.data_ptr() : nullptr; }

inline const void* data(const std::optional<at::Tensor>& tensor) {
  return tensor.has_value() ? data(*tensor) : nullptr;
}

// Rows of clips [B, T, C], or one row for each clip [B, C].
inline Clips make_clips(const at::Tensor& x) {
  return {data(x), x.size(-1), x.stride(0), x.dim() == 3 ? x.stride(1) : 0};
}

// The tensor with features next to each other in memory; other strides stay as they are.
inline at::Tensor packed_features(const at::Tensor& tensor) {
  return tensor.size(-1) <= 1 || tensor.stride(-1) == 1 ? tensor : tensor.contiguous();
}

inline std::optional<at::Tensor> contiguous(const std::optional<at::Tensor>& tensor) {
  return tensor.has_value() ? std::optional<at::Tensor>(tensor->contiguous()) : std::nullopt;
}

// `lengths` is the caller's to keep alive.
inline Frames make_frames(const std::optional<at::Tensor>& lengths, int64_t batch, int64_t time) {
  return {lengths.has_value() ? lengths->const_data_ptr<int64_t>() : nullptr, batch, time};
}

inline at::Tensor empty_float(const at::Tensor& like, at::IntArrayRef sizes, at::ScalarType dtype = at::kFloat) {
  return at::empty(sizes, like.options().dtype(dtype).memory_format(std::nullopt));
}

inline at::Tensor zeros_float(const at::Tensor& like, at::IntArrayRef sizes) {
  return at::zeros(sizes, like.options().dtype(at::kFloat));
}

// a b in float32, whatever the operands' type.
inline at::Tensor product_float(const at::Tensor& a, const at::Tensor& b) {
#if defined(LOSATOK_HOST_SHIM)  // torch has products of mixed types on a GPU only
  return at::mm(a.to(at::kFloat), b.to(at::kFloat));
#else
  return a.scalar_type() == at::kFloat ? at::mm(a, b) : at::mm(a, b, at::kFloat);
#endif
}

// out = x weight^T + bias
inline void linear_out(at::Tensor out, const at::Tensor& x, const at::Tensor& weight,
                       const std::optional<at::Tensor>& bias) {
  if (bias.has_value()) {
    at::addmm_out(out, *bias, x, weight.t());
  } else {
    at::mm_out(out, x, weight.t());
  }
}

inline at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
  return bias.has_value() ? at::addmm(*bias, x, weight.t()) : at::mm(x, weight.t());
}

// sums (+)= column sums of values [rows, columns]; values may have any row stride.
inline void sum_columns(const at::Tensor& values, const at::Tensor& sums, bool accumulate) {
  const int64_t rows = values.size(0), columns = values.size(1);
  const at::Tensor partial = empty_float(values, {column_sum_blocks(rows), columns});
  check(column_sums(dtype_of("values", values), data(values), rows, columns, values.stride(0),
                    static_cast<float*>(data(partial)), dtype_of("sums", sums), data(sums), accumulate, stream()));
}

// How many rows of `bytes_per_row` fit the workspace: a multiple of 64, at least 64.
inline int64_t rows_per_chunk(int64_t bytes_per_row) {
  return std::max<int64_t>(64, kWorkspaceBytes / std::max<int64_t>(1, bytes_per_row) / 64 * 64);
}

}  // namespace losatok::cuda
