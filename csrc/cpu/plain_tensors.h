// Turns off autograd and autocast inside an op. The public functions have handled both by then. Worker threads do not
// inherit this from the thread that starts them: each needs its own guard.
#pragma once

#include <ATen/autocast_mode.h>
#include <ATen/core/LegacyTypeDispatch.h>

namespace losatok {

struct PlainTensors {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
};

}  // namespace losatok
