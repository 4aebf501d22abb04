// Which instruction set the CPU kernels use, decided once per process.
//
// Kernels under csrc/cpu/simd/ are compiled once per entry of LOSATOK_ISAS in CMakeLists.txt, each into the namespace
// losatok::LOSATOK_ISA. They take raw pointers and include no torch header: an inline function of a shared header
// compiled for AVX-512 could otherwise be the copy that the linker keeps for everyone.
#pragma once

#include <cstdlib>
#include <cstring>

namespace losatok {

enum class Isa { kDefault, kAvx2, kAvx512 };

inline const char* isa_name(Isa isa) { return isa == Isa::kAvx512 ? "avx512" : isa == Isa::kAvx2 ? "avx2" : "default"; }

inline Isa isa() {
  static const Isa chosen = [] {
    Isa best = Isa::kDefault;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
      best = Isa::kAvx2;
    if (best == Isa::kAvx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
      best = Isa::kAvx512;
    if (const char* cap =
            std::getenv("LOSATOK_ISA")) {  // lowers the choice, never raises it: for tests and measurements
      if (!std::strcmp(cap, "default")) best = Isa::kDefault;
      if (!std::strcmp(cap, "avx2") && best == Isa::kAvx512) best = Isa::kAvx2;
    }
#endif
    return best;
  }();
  return chosen;
}

}  // namespace losatok

// Calls the copy of a simd kernel that fits this processor: LOSATOK_SIMD(row_norms)(pointer, ...).
#if defined(__x86_64__)
#define LOSATOK_SIMD(...)                                                       \
  (::losatok::isa() == ::losatok::Isa::kAvx512 ? ::losatok::avx512::__VA_ARGS__ \
   : ::losatok::isa() == ::losatok::Isa::kAvx2 ? ::losatok::avx2::__VA_ARGS__   \
                                               : ::losatok::default_::__VA_ARGS__)
#else
#define LOSATOK_SIMD(...) (::losatok::default_::__VA_ARGS__)
#endif
