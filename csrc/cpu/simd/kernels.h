// Declares row kernels once per instruction set. A family's header lists its declarations in a macro and passes it
// here; its .cpp defines them in namespace losatok::LOSATOK_ISA, and callers choose by LOSATOK_SIMD(kernel)(...).
#pragma once

#include <cstdint>

#define LOSATOK_IN_EACH_ISA(KERNELS) \
  namespace losatok {                \
  namespace default_ {               \
  KERNELS                            \
  }                                  \
  namespace avx2 {                   \
  KERNELS                            \
  }                                  \
  namespace avx512 {                 \
  KERNELS                            \
  }                                  \
  }  // namespace losatok
