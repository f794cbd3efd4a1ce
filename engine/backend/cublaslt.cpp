#include "engine/backend/cublaslt.hpp"

#include <dlfcn.h>

#include <utility>

namespace rollcast {

namespace {

// What cublasLt.h (13.1) calls these: the header is not needed to build, nor the library to link.
constexpr int compute_32f = 68;   // CUBLAS_COMPUTE_32F
constexpr int real_32f = 0;       // CUDA_R_32F
constexpr int real_16bf = 14;     // CUDA_R_16BF
constexpr int transpose = 1;      // CUBLAS_OP_T
constexpr int desc_transa = 3;    // CUBLASLT_MATMUL_DESC_TRANSA
constexpr int workspace_attr = 1; // CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES

/// One algorithm, as the library proposes it: cublasLtMatmulHeuristicResult_t.
struct proposal {
  std::uint64_t algorithm[8];
  std::size_t workspace_bytes;
  int state;
  float waves;
  int reserved[4];
};

template <class T>
bool look_up(void* library, const char* name, T& call) {
  call = reinterpret_cast<T>(::dlsym(library, name));
  return call != nullptr;
}

} // namespace

struct cublaslt::calls {
  void* library = nullptr;
  void* handle = nullptr;
  int (*create)(void**) = nullptr;
  int (*destroy)(void*) = nullptr;
  int (*desc_create)(void**, int, int) = nullptr;
  int (*desc_set)(void*, int, const void*, std::size_t) = nullptr;
  int (*desc_destroy)(void*) = nullptr;
  int (*layout_create)(void**, int, std::uint64_t, std::uint64_t, std::int64_t) = nullptr;
  int (*layout_destroy)(void*) = nullptr;
  int (*preference_create)(void**) = nullptr;
  int (*preference_set)(void*, int, const void*, std::size_t) = nullptr;
  int (*preference_destroy)(void*) = nullptr;
  int (*propose)(void*, void*, void*, void*, void*, void*, void*, int, proposal*, int*) = nullptr;
  int (*matmul)(void*, void*, const void*, const void*, void*, const void*, void*, const void*,
                const void*, void*, void*, void*, const void*, void*, std::size_t, void*) = nullptr;

  bool load() {
    return look_up(library, "cublasLtCreate", create)
           && look_up(library, "cublasLtDestroy", destroy)
           && look_up(library, "cublasLtMatmulDescCreate", desc_create)
           && look_up(library, "cublasLtMatmulDescSetAttribute", desc_set)
           && look_up(library, "cublasLtMatmulDescDestroy", desc_destroy)
           && look_up(library, "cublasLtMatrixLayoutCreate", layout_create)
           && look_up(library, "cublasLtMatrixLayoutDestroy", layout_destroy)
           && look_up(library, "cublasLtMatmulPreferenceCreate", preference_create)
           && look_up(library, "cublasLtMatmulPreferenceSetAttribute", preference_set)
           && look_up(library, "cublasLtMatmulPreferenceDestroy", preference_destroy)
           && look_up(library, "cublasLtMatmulAlgoGetHeuristic", propose)
           && look_up(library, "cublasLtMatmul", matmul);
  }
};

cublaslt::cublaslt(std::unique_ptr<calls> library) : library_(std::move(library)) {}

cublaslt::~cublaslt() {
  library_->destroy(library_->handle);
}

std::unique_ptr<cublaslt> cublaslt::find(std::string& why_not) {
  auto found = std::make_unique<calls>();
  for (const auto* name : {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"})
    if (found->library == nullptr)
      found->library = ::dlopen(name, RTLD_NOW | RTLD_LOCAL);
  if (found->library == nullptr)
    why_not = "no libcublasLt.so.13 in the loader's path (LD_LIBRARY_PATH)";
  else if (!found->load())
    why_not = "libcublasLt lacks a call that is needed";
  else if (found->create(&found->handle) != 0)
    why_not = "cublasLtCreate failed";
  else
    return std::unique_ptr<cublaslt>(new cublaslt(std::move(found)));
  return nullptr; // the library stays loaded: it does not like to go
}

bool cublaslt::product(const void* x, const void* w, void* y, std::size_t rows, std::size_t n,
                       std::size_t k, void* workspace, std::size_t workspace_bytes,
                       kernels::cuda::stream_handle stream) const {
  const auto& call = *library_;
  // The library counts columns first: y^T [n, rows] = w [n, k] * x^T [k, rows], where w, row-major,
  // is its [k, n] transposed.
  void* desc = nullptr;
  void* of_w = nullptr;
  void* of_x = nullptr;
  void* of_y = nullptr;
  void* preference = nullptr;
  proposal best{};
  int proposals = 0;
  bool good =
    call.desc_create(&desc, compute_32f, real_32f) == 0
    && call.desc_set(desc, desc_transa, &transpose, sizeof transpose) == 0
    && call.layout_create(&of_w, real_16bf, k, n, static_cast<std::int64_t>(k)) == 0
    && call.layout_create(&of_x, real_16bf, k, rows, static_cast<std::int64_t>(k)) == 0
    && call.layout_create(&of_y, real_16bf, n, rows, static_cast<std::int64_t>(n)) == 0
    && call.preference_create(&preference) == 0
    && call.preference_set(preference, workspace_attr, &workspace_bytes, sizeof workspace_bytes)
         == 0
    && call.propose(call.handle, desc, of_w, of_x, of_y, of_y, preference, 1, &best, &proposals)
         == 0
    && proposals > 0;
  const float one = 1;
  const float zero = 0;
  good = good
         && call.matmul(call.handle, desc, &one, w, of_w, x, of_x, &zero, y, of_y, y, of_y,
                        best.algorithm, workspace, workspace_bytes, stream)
              == 0;
  for (void* layout : {of_w, of_x, of_y})
    if (layout != nullptr)
      call.layout_destroy(layout);
  if (preference != nullptr)
    call.preference_destroy(preference);
  if (desc != nullptr)
    call.desc_destroy(desc);
  return good;
}

} // namespace rollcast
