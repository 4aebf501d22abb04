// What the bindings and the launchers share: element types and activations as plain numbers, no torch header.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

namespace losatok::cuda {

enum class DType : int { kFloat = 0, kBFloat16 = 1, kHalf = 2 };

enum class Activation : int { kGelu = 0, kGeluTanh = 1, kSilu = 2, kRelu = 3, kNone = 4 };

// Norms are bounded below by this, as in torch.nn.functional.normalize.
constexpr float kNormEps = 1e-12f;

// The valid frames of a batch [B, T]: lengths [B] on the device, clamped to 0..T, or null for all.
struct Frames {
  const int64_t* lengths;
  int64_t batch;
  int64_t time;
};

// Rows of a batch: contiguous features, the given strides in elements. A row stride of 0 is one row for a whole item.
struct Clips {
  const void* data;  // [B, T, features]
  int64_t features;
  int64_t batch_stride, row_stride;
};

}  // namespace losatok::cuda
