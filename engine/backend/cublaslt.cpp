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
constexpr int desc_epilogue = 7;  // CUBLASLT_MATMUL_DESC_EPILOGUE
constexpr int desc_bias = 8;      // CUBLASLT_MATMUL_DESC_BIAS_POINTER
constexpr int epilogue_bias = 4;  // CUBLASLT_EPILOGUE_BIAS
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

/// How one product is done, as the library wants to be told.
class cublaslt::recipe {
public:
  /// The library counts columns first: y^T [n, rows] = w [n, k] * x^T [k, rows], where w,
  /// row-major, is its [k, n] transposed.
  recipe(const calls& call, const library_product& p, std::size_t workspace_bytes) : call_(call) {
    const int type = p.output == kernels::cuda::gemm_output::f32 ? real_32f : real_16bf;
    const auto leading = [](std::size_t size) { return static_cast<std::int64_t>(size); };
    int proposals = 0;
    good_ =
      call_.desc_create(&desc_, compute_32f, real_32f) == 0 && set(desc_transa, transpose)
      && (p.bias == nullptr || (set(desc_epilogue, epilogue_bias) && set(desc_bias, p.bias)))
      && call_.layout_create(&w_, real_16bf, p.k, p.n, leading(p.k)) == 0
      && call_.layout_create(&x_, real_16bf, p.k, p.rows, leading(p.k)) == 0
      && call_.layout_create(&y_, type, p.n, p.rows, leading(p.n)) == 0
      && call_.preference_create(&preference_) == 0
      && call_.preference_set(preference_, workspace_attr, &workspace_bytes, sizeof workspace_bytes)
           == 0
      && call_.propose(call_.handle, desc_, w_, x_, y_, y_, preference_, 1, &best_, &proposals) == 0
      && proposals > 0;
  }
  recipe(const recipe&) = delete;
  recipe& operator=(const recipe&) = delete;
  ~recipe() {
    for (void* layout : {w_, x_, y_})
      if (layout != nullptr)
        call_.layout_destroy(layout);
    if (preference_ != nullptr)
      call_.preference_destroy(preference_);
    if (desc_ != nullptr)
      call_.desc_destroy(desc_);
  }

  bool run(const library_product& p, std::byte* workspace, std::size_t workspace_bytes,
           kernels::cuda::stream_handle stream) const {
    const float one = 1;
    const float kept = p.add ? 1.0f : 0.0f;
    return good_
           && call_.matmul(call_.handle, desc_, &one, p.w, w_, p.x, x_, &kept, p.y, y_, p.y, y_,
                           best_.algorithm, workspace, workspace_bytes, stream)
                == 0;
  }

private:
  template <class T>
  bool set(int attribute, const T& value) {
    return call_.desc_set(desc_, attribute, &value, sizeof value) == 0;
  }

  const calls& call_;
  bool good_ = false;
  void* desc_ = nullptr;
  void* w_ = nullptr;
  void* x_ = nullptr;
  void* y_ = nullptr;
  void* preference_ = nullptr;
  proposal best_{};
};

kernels::cuda::device_status cublaslt::multiply(const library_product& p, std::byte* workspace,
                                                kernels::cuda::stream_handle stream) const {
  if (recipe{*library_, p, workspace_bytes()}.run(p, workspace, workspace_bytes(), stream))
    return {};
  return tl::unexpected(kernels::cuda::device_error{
    -1, "cuBLASLt refuses a product of " + std::to_string(p.rows) + " rows, n "
          + std::to_string(p.n) + ", k " + std::to_string(p.k)});
}

} // namespace rollcast
