// The Python module `_C`: what this build is. Loading it registers the kernels of every op, each where it is written
// (csrc/cpu/<op>.cpp, csrc/cuda/bindings_<op>.cpp). The schemas of the ops are registered by losatok_ext.ops.
#include <pybind11/pybind11.h>

#include "cpu/isa.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "The native kernels of losatok_ext; importing losatok_ext.ops as well gives torch.ops.losatok.*";
  m.def(
      "build_info",
      [] {
        pybind11::dict facts;
        facts["version"] = LOSATOK_VERSION;
        facts["torch"] = LOSATOK_BUILD_TORCH;
        facts["python"] = LOSATOK_BUILD_PYTHON;
        facts["compiler"] = LOSATOK_BUILD_COMPILER;
        facts["cuda"] = LOSATOK_BUILD_CUDA;
        facts["cuda_archs"] = LOSATOK_BUILD_CUDA_ARCHS;
        facts["instruction_sets"] = LOSATOK_BUILD_ISAS;
#ifdef LOSATOK_WITH_CUDA
        facts["with_cuda"] = true;
#else
        facts["with_cuda"] = false;
#endif
        return facts;
      },
      "What this build was made with: versions, compiler, CUDA toolkit and architectures, CPU instruction sets.");
  m.def(
      "instruction_set", [] { return losatok::isa_name(losatok::isa()); },
      "The CPU instruction set in use: default, avx2 or avx512 (LOSATOK_ISA caps it).");
}
