// Checks of time_relation_loss and gram_energy.
#pragma once

#include "checks/arguments.h"

namespace losatok::check {

// x [B, T, features], at least one of them.
inline void features(const char* name, const Tensor& x) {
  clips(name, x);
  TORCH_CHECK_VALUE(x.size(2) > 0, name, " should have at least one feature (its last size), got ", x.sizes());
}

inline void time_relation_forward(const Tensor& low, const Tensor& high, const OptionalTensor& lengths, int64_t window,
                                  std::string_view algorithm, const OptionalTensor& high_energy) {
  features("low", low);
  like("high", high, low, {low.size(0), low.size(1), kAny});
  features("high", high);
  check::lengths(lengths, low);
  if (given(high_energy)) floating_beside("high_energy", *high_energy, low, {low.size(0)});
  TORCH_CHECK_VALUE(algorithm == "auto" || algorithm == "tiled" || algorithm == "banded" || algorithm == "factored",
                    "algorithm should be one of auto, tiled, banded, factored, got ", algorithm);
  TORCH_CHECK_VALUE(algorithm != "factored" || window < 0 || window >= low.size(1) - 1,
                    "algorithm factored should come without a window below T - 1 = ", low.size(1) - 1, ", got ",
                    window);
}

inline void gram_energy_forward(const Tensor& high, const OptionalTensor& lengths) {
  features("high", high);
  check::lengths(lengths, high);
}

}  // namespace losatok::check
