# One target per folder; DEPS are the arrows of the architecture.
function(rollcast_flags target)
  target_include_directories(${target} PUBLIC ${PROJECT_SOURCE_DIR})
  target_include_directories(${target} SYSTEM PUBLIC ${EXPECTED_INCLUDE_DIR})
  # Clean with g++, the compiler of the product; clang, used to fuzz, warns of other things.
  target_compile_options(${target} PRIVATE $<$<CXX_COMPILER_ID:GNU>:-Wall;-Wextra;-Wconversion;-Werror>
                         -ffp-contract=off)
endfunction()

function(rollcast_library name)
  cmake_parse_arguments(ARG "" "" "SRCS;DEPS" ${ARGN})
  add_library(rollcast_${name} STATIC ${ARG_SRCS})
  rollcast_flags(rollcast_${name})
  target_link_libraries(rollcast_${name} PUBLIC ${ARG_DEPS})
endfunction()

# What every test finds in its environment.
set(ROLLCAST_TEST_ENVIRONMENT "")
if(CMAKE_CXX_FLAGS MATCHES "fsanitize=thread")
  set(ROLLCAST_TEST_ENVIRONMENT
      "TSAN_OPTIONS=ignore_noninstrumented_modules=1:suppressions=${PROJECT_SOURCE_DIR}/tests/tsan.supp")
endif()

# Instrumented processes are given more time by the tests that start some.
set(ROLLCAST_TEST_SLOWNESS 1)
if(CMAKE_CXX_FLAGS MATCHES "fsanitize")
  set(ROLLCAST_TEST_SLOWNESS 6)
endif()

# LABEL is one of unit, contract, sim, e2e, tidy, slow.
function(rollcast_test name)
  cmake_parse_arguments(ARG "" "LABEL;TIMEOUT" "SRCS;DEPS" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  add_executable(${name} ${ARG_SRCS})
  rollcast_flags(${name})
  target_compile_options(${name} PRIVATE ${ROLLCAST_TEST_OPTIONS})
  target_compile_definitions(${name} PRIVATE ROLLCAST_SOURCE_DIR="${PROJECT_SOURCE_DIR}"
                             ROLLCAST_BINARY_DIR="${PROJECT_BINARY_DIR}")
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} GTest::gtest_main)
  gtest_discover_tests(${name} DISCOVERY_TIMEOUT 60
                       PROPERTIES LABELS ${ARG_LABEL} TIMEOUT ${ARG_TIMEOUT}
                       ENVIRONMENT "${ROLLCAST_TEST_ENVIRONMENT}")
endfunction()
