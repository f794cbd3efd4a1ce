# CUDA, if it is there. ROLLCAST_CUDA=AUTO builds the kernels for the GPU when nvcc is found, ON
# insists on it, OFF leaves it out. Without it everything else builds: the kernels are then compiled
# for the emulator alone, as they are with AUTO under a sanitizer, which sees nothing of a GPU.
set(ROLLCAST_CUDA AUTO CACHE STRING "Build the CUDA kernels with nvcc: AUTO, ON or OFF")
set(ROLLCAST_CUDA_ARCHITECTURES "80-real;90a-real;100-real" CACHE STRING
    "GPUs to build for: A100, H100 and H200, B200")
set(ROLLCAST_HAS_CUDA OFF)

set(wanted ${ROLLCAST_CUDA})
if(ROLLCAST_FUZZ OR (ROLLCAST_CUDA STREQUAL "AUTO" AND CMAKE_CXX_FLAGS MATCHES "fsanitize"))
  set(wanted OFF)
endif()
if(wanted)
  find_program(ROLLCAST_NVCC nvcc PATHS /usr/local/cuda/bin)
  if(ROLLCAST_NVCC)
    set(CMAKE_CUDA_COMPILER ${ROLLCAST_NVCC})
    set(CMAKE_CUDA_ARCHITECTURES ${ROLLCAST_CUDA_ARCHITECTURES})
    enable_language(CUDA)
    # CMake 3.25 does not know that nvcc 13 does C++20.
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
    set(CMAKE_CUDA_STANDARD 20)
    if(CCACHE)
      set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE})
    endif()
    find_package(CUDAToolkit REQUIRED)
    set(ROLLCAST_HAS_CUDA ON)
  elseif(ROLLCAST_CUDA STREQUAL "ON")
    message(FATAL_ERROR "ROLLCAST_CUDA is ON, but there is no nvcc: put it in the PATH")
  endif()
endif()

# Kernels for the GPU. No multiplication is fused with an addition unless the source says so, no
# subnormal is flushed, division and square root are rounded correctly: the bits are the source's.
function(rollcast_cuda_library name)
  cmake_parse_arguments(ARG "" "" "SRCS;DEPS" ${ARGN})
  add_library(rollcast_${name} STATIC ${ARG_SRCS})
  target_include_directories(rollcast_${name} PUBLIC ${PROJECT_SOURCE_DIR})
  target_include_directories(rollcast_${name} SYSTEM PUBLIC ${EXPECTED_INCLUDE_DIR})
  target_compile_options(rollcast_${name} PRIVATE
    $<$<COMPILE_LANGUAGE:CUDA>:-fmad=false;-ftz=false;-prec-div=true;-prec-sqrt=true>
    $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr;-Werror=all-warnings>
    $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra,-ffp-contract=off>
    $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wconversion;-Werror;-ffp-contract=off>)
  target_link_libraries(rollcast_${name} PUBLIC ${ARG_DEPS} CUDA::cudart_static)
endfunction()
