# The CUDA kernels are C++20. CMake before 3.25.2 (Debian 12 has 3.25.1) does not know how nvcc is told so, and would stop
# with 'Target "losatok_cuda" requires the language dialect "CUDA20"'. nvcc itself knows C++20 from CUDA 12.0.
if(NOT "cuda_std_20" IN_LIST CMAKE_CUDA_COMPILE_FEATURES)
  message(FATAL_ERROR "CMake ${CMAKE_VERSION} (${CMAKE_COMMAND}) cannot compile C++20 with nvcc ${CMAKE_CUDA_COMPILER_VERSION}. Install a newer "
                      "CMake (pip install 'cmake>=3.25.2'; nvcc must be 12.0 or newer), or leave the CUDA kernels out: LOSATOK_CUDA=0")
endif()
