// Which instruction set the CPU kernels use, decided once per process.
//
// Kernels under csrc/cpu/simd/ are compiled once per entry of LOSATOK_ISAS in CMakeLists.txt, each into the namespace
// losatok::LOSATOK_ISA. They take raw pointers and include no torch header: an inline function of a shared header
// compiled for AVX-512 could otherwise be the copy that the linker keeps for everyone.
#pragma once

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>

namespace losatok {

enum class Isa { kDefault, kAvx2, kAvx512 };

inline const char* isa_name(Isa isa) { return isa == Isa::kAvx512 ? "avx512" : isa == Isa::kAvx2 ? "avx2" : "default"; }

// LOSATOK_ISA lowers the choice, never raises it; for tests and measurements. Throws where it names no instruction set.
inline Isa isa() {
  static const Isa chosen = [] {
    Isa best = Isa::kDefault;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
      best = Isa::kAvx2;
    if (best == Isa::kAvx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
      best = Isa::kAvx512;
#endif
    const char* given = std::getenv("LOSATOK_ISA");
    if (!given || !*given) return best;
    for (const Isa cap : {Isa::kDefault, Isa::kAvx2, Isa::kAvx512})
      if (std::string_view(given) == isa_name(cap)) return std::min(best, cap);
    throw std::invalid_argument("the environment variable LOSATOK_ISA is '" + std::string(given) +
                                "'; it takes default, avx2 or avx512 (or nothing: the best that the processor has)");
  }();
  return chosen;
}

// What oneDNN, torch's generator of products, may use at most: ONEDNN_MAX_CPU_ISA (DNNL_MAX_CPU_ISA) lowers it.
enum class OneDnn { kLess, kAvx2, kAvx512Bf16 };

inline bool onednn_reaches(OneDnn level) {
  static const OneDnn most = [] {
    const char* given = std::getenv("ONEDNN_MAX_CPU_ISA");
    if (!given) given = std::getenv("DNNL_MAX_CPU_ISA");
    std::string cap(given ? given : "");
    std::transform(cap.begin(), cap.end(), cap.begin(), [](unsigned char c) { return std::toupper(c); });
    for (const char* name : {"SSE41", "AVX"})
      if (cap == name) return OneDnn::kLess;
    for (const char* name : {"AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"})
      if (cap == name) return OneDnn::kAvx2;
    return OneDnn::kAvx512Bf16;
  }();
  return most >= level;
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
