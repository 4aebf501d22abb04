// What layer_norm_modulate and gated_residual on the CPU share: frames in chunks of a fixed size, so that what is
// summed over the frames of a clip is the same on any number of threads.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <type_traits>
#include <vector>

#include "checks/modulation.h"
#include "cpu/isa.h"
#include "cpu/simd/modulation.h"

namespace losatok::modulation {

using at::Tensor;

inline constexpr int64_t kFrames = 32;  // of a chunk

// float16 tensors are converted to float32 first.
inline Tensor prepared(const Tensor& x) {
  const Tensor wide = x.scalar_type() == at::kHalf ? x.to(at::kFloat) : x;
  return wide.size(-1) <= 1 || wide.stride(-1) == 1 ? wide : wide.contiguous();
}

template <class Function>
void by_type(at::ScalarType type, const Function& function) {
  if (type == at::kDouble)
    function.template operator()<double>();
  else if (type == at::kFloat)
    function.template operator()<float>();
  else
    function.template operator()<Bf16>();
}

// A tensor [B, T, C], or [B, C] for all frames of a clip, from frame t of clip b.
template <class T>
Rows<T> rows(const Tensor& x, int64_t b, int64_t t) {
  const int64_t stride = x.dim() == 3 ? x.stride(1) : 0, offset = b * x.stride(0) + t * stride;
  if constexpr (std::is_const_v<T>)
    return {static_cast<T*>(x.const_data_ptr()) + offset, stride};
  else
    return {static_cast<T*>(x.mutable_data_ptr()) + offset, stride};
}

// Chunks of the frames of x [B, T, C], in parallel: visit(b, t, frames, chunk).
template <class Visit>
void for_chunks(const Tensor& x, const Visit& visit) {
  const int64_t time = x.size(1), chunks = (time + kFrames - 1) / kFrames;
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, kFrames * x.size(2)));
  at::parallel_for(0, x.size(0) * chunks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t t = i % chunks * kFrames;
      visit(i / chunks, t, std::min(kFrames, time - t), i);
    }
  });
}

// The gradient of a shift, scale or gate of x [B, T, C]: [B, T, C] itself, or [B, C] as sums of chunks.
template <class T>
class Gradient {
  using W = wide_t<T>;

 public:
  Gradient(const Tensor& x, bool per_frame)
      : batch_(x.size(0)), channels_(x.size(2)), chunks_((x.size(1) + kFrames - 1) / kFrames) {
    result_ = per_frame ? at::empty(x.sizes(), x.options()) : at::empty({batch_, channels_}, x.options());
    if (!per_frame) parts_ = at::zeros({batch_ * chunks_, channels_}, c10::CppTypeToScalarType<W>::value);
  }

  ParameterGrad<T> chunk(int64_t b, int64_t t, int64_t number) const {
    if (!parts_.defined()) return {rows<T>(result_, b, t), nullptr};
    return {{nullptr, 0}, parts_.mutable_data_ptr<W>() + number * channels_};
  }

  Tensor finish(at::ScalarType type) const {
    if (!parts_.defined()) return result_.to(type);
    const Tensor sums = at::empty({batch_, channels_}, parts_.options());
    W* out = sums.mutable_data_ptr<W>();
    const W* parts = parts_.const_data_ptr<W>();
    at::parallel_for(0, batch_, 1, [&](int64_t begin, int64_t end) {
      std::vector<double> total(channels_);
      for (int64_t b = begin; b < end; ++b) {
        std::fill(total.begin(), total.end(), 0.0);
        for (int64_t c = b * chunks_; c < (b + 1) * chunks_; ++c)
          for (int64_t j = 0; j < channels_; ++j) total[j] += parts[c * channels_ + j];
        std::transform(total.begin(), total.end(), out + b * channels_, [](double v) { return static_cast<W>(v); });
      }
    });
    return sums.to(type);
  }

 private:
  int64_t batch_, channels_, chunks_;
  Tensor result_, parts_;
};

}  // namespace losatok::modulation
