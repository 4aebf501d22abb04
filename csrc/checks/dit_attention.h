// Checks of dit_attention.
#pragma once

#include "checks/arguments.h"

namespace losatok::check {

inline constexpr int64_t kMostHeadFeatures = 256;

// The norm of that name, of either enumeration of them.
template <class Norm>
Norm head_norm(std::string_view name) {
  if (name == "rms") return Norm::kRms;
  if (name == "layer") return Norm::kLayer;
  TORCH_CHECK_VALUE(name == "none", "norm should be one of none, rms, layer, got ", name);
  return Norm::kNone;
}

inline void dit_attention_forward(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& q_weight,
                                  const OptionalTensor& k_weight, const OptionalTensor& cos, const OptionalTensor& sin,
                                  const OptionalTensor& lengths, const OptionalTensor& key_lengths,
                                  std::string_view norm) {
  floating("q", q);
  sizes("q", q, {kAny, kAny, kAny, kAny});
  const int64_t features = q.size(3);
  TORCH_CHECK_VALUE(features >= 1 && features <= kMostHeadFeatures, "heads should have 1 to ", kMostHeadFeatures,
                    " features, got ", features);
  like("k", k, q, {q.size(0), kAny, q.size(2), features});
  like("v", v, q, {q.size(0), k.size(1), q.size(2), features});
  TORCH_CHECK_VALUE(norm != "none" || !(given(q_weight) || given(k_weight)),
                    "q_weight and k_weight should be None without a norm, got norm none");
  if (given(q_weight)) wide_beside("q_weight", *q_weight, q, {features});
  if (given(k_weight)) wide_beside("k_weight", *k_weight, q, {features});
  TORCH_CHECK_VALUE(given(cos) == given(sin), "cos and sin should come together");
  if (given(cos)) {
    wide_beside("cos", *cos, q, {q.size(1), kAny});
    wide_beside("sin", *sin, q, {q.size(1), cos->size(1)});
    TORCH_CHECK_VALUE(cos->size(1) >= 1 && cos->size(1) <= features / 2 && k.size(1) == q.size(1),
                      "cos and sin should have 1 to ", features / 2, " angles and go with S = T, got ", cos->size(1),
                      " for ", q.size(1), " queries and ", k.size(1), " keys");
  }
  check::lengths(lengths, q);
  check::lengths(key_lengths, q, "key_lengths");
}

inline void dit_attention_backward(const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v,
                                   const OptionalTensor& q_weight, const OptionalTensor& k_weight,
                                   const OptionalTensor& cos, const OptionalTensor& sin, const OptionalTensor& lengths,
                                   const OptionalTensor& key_lengths, const Tensor& out, const Tensor& lse,
                                   std::string_view norm) {
  dit_attention_forward(q, k, v, q_weight, k_weight, cos, sin, lengths, key_lengths, norm);
  like("grad", grad, q, {q.size(0), q.size(1), q.size(2), q.size(3)});
  like("out", out, q, {q.size(0), q.size(1), q.size(2), q.size(3)});
  wide_beside("lse", lse, q, {q.size(0), q.size(2), q.size(1)});
}

}  // namespace losatok::check
