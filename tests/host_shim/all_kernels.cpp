// Runs every launcher once per element type on tiny shapes (launches/), for the sanitizers: all buffers are exactly as
// large as they should be, and results must be finite. Arguments: order (0 forward, 1 reverse, 2 by priorities) and
// seed; with a third, each launch is told: how far its kernel is from losatok_shim_anchor, and the shared memory that
// it asks for.
#include <cstdio>
#include <cstdlib>

#include "fibers.h"
#include "launches/launches.h"

extern "C" void losatok_shim_anchor() {}

int main(int count, char** arguments) {
  using losatok::cuda::DType;
  if (count == 4) {
    host_shim::on_launch = [](const void* kernel, size_t shared_bytes) {
      const char* anchor = reinterpret_cast<const char*>(&losatok_shim_anchor);
      std::printf("launch %td %zu\n", static_cast<const char*>(kernel) - anchor, shared_bytes);
    };
  }
  if (count >= 3)
    host_shim::set_order(static_cast<host_shim::Order>(std::atoi(arguments[1])), std::atoll(arguments[2]));
  const DType next[] = {DType::kBFloat16, DType::kHalf, DType::kFloat};
  for (const DType dtype : {DType::kFloat, DType::kBFloat16, DType::kHalf}) {
    for (const auto family :
         {launches::bottleneck, launches::time_relation, launches::quantize, launches::dit, launches::vocoder})
      family(dtype, next[static_cast<int>(dtype)]);
  }
  std::printf("ok: %d launches\n", launches::count);
  return 0;
}
