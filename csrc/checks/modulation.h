// Checks of layer_norm_modulate and gated_residual.
#pragma once

#include "checks/arguments.h"

namespace losatok::check {

// `parameter` goes with x [B, T, C]: one row for a clip, or one for each frame.
inline void modulation(const char* name, const Tensor& parameter, const Tensor& x) {
  dtype(name, parameter, x.scalar_type());
  device(name, parameter, x.device());
  TORCH_CHECK_VALUE((parameter.dim() == 3 && parameter.sizes() == x.sizes()) ||
                        (parameter.dim() == 2 && parameter.size(0) == x.size(0) && parameter.size(1) == x.size(2)),
                    name, " should have shape [B, C] or [B, T, C], got ", parameter.sizes());
}

inline void layer_norm_modulate_forward(const Tensor& x, const Tensor& shift, const Tensor& scale) {
  clips("x", x);
  modulation("shift", shift, x);
  modulation("scale", scale, x);
}

inline void layer_norm_modulate_backward(const Tensor& grad, const Tensor& x, const Tensor& scale, const Tensor& mean,
                                         const Tensor& rstd) {
  clips("x", x);
  modulation("scale", scale, x);
  like("grad", grad, x, {x.size(0), x.size(1), x.size(2)});
  wide_beside("mean", mean, x, {x.size(0), x.size(1)});
  wide_beside("rstd", rstd, x, {x.size(0), x.size(1)});
}

inline void gated_residual_forward(const Tensor& x, const Tensor& branch, const Tensor& gate) {
  clips("x", x);
  like("branch", branch, x, {x.size(0), x.size(1), x.size(2)});
  modulation("gate", gate, x);
}

inline void gated_residual_backward(const Tensor& grad, const Tensor& branch, const Tensor& gate) {
  clips("branch", branch);
  like("grad", grad, branch, {branch.size(0), branch.size(1), branch.size(2)});
  modulation("gate", gate, branch);
}

}  // namespace losatok::check
