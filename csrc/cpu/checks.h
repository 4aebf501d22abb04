// What the ops on the CPU check besides csrc/checks: the values of codes. One pass, and the op reads them several
// times.
#pragma once

#include <ATen/ops/aminmax.h>

#include "checks/arguments.h"

namespace losatok::check {

// int64 numbers of codes: -1 is none.
inline void codes(const char* name, const Tensor& tensor, int64_t count) {
  if (tensor.numel() == 0) return;
  const auto [low, high] = at::aminmax(tensor);
  const int64_t least = low.item<int64_t>(), most = high.item<int64_t>();
  TORCH_CHECK_VALUE(least >= -1 && most < count, name, " should lie within -1..", count - 1, " (of ", count,
                    " codes; -1 is none), got ", least, "..", most);
}

}  // namespace losatok::check
