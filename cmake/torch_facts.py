"""Print what CMake needs to know about the installed torch, one FACT=value per line."""

from pathlib import Path

import torch
from torch.utils import cpp_extension

libraries = Path(torch.__file__).parent / "lib"
openmp = sorted(libraries.glob("libgomp*.so*")) or sorted((libraries.parent.parent / "torch.libs").glob("libgomp*.so*"))
print(f"VERSION={torch.__version__}")
print(f"CUDA_VERSION={torch.version.cuda or ''}")
print(f"INCLUDES={','.join(cpp_extension.include_paths())}")
print(f"LIBRARY_DIR={libraries}")
print(f"CXX11_ABI={int(torch.compiled_with_cxx11_abi())}")
print(f"OPENMP={openmp[0] if openmp else '-fopenmp'}")
