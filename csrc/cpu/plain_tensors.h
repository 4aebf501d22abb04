// Guard of the code inside an op, on every thread it starts: no autograd and no autocast. Autograd has been dealt with
// above and autocast in Python; worker threads inherit neither guard.
#pragma once

#include <ATen/autocast_mode.h>
#include <ATen/core/LegacyTypeDispatch.h>

namespace losatok {

struct PlainTensors {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
};

}  // namespace losatok
