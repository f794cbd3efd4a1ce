#include "engine/backend/cuda_backend.hpp"
#include "engine/backend/cuda_rates.hpp"
#include "engine/collective/nccl.hpp"

/// The GPU of a build without CUDA: there is none, and it says so.
namespace rollcast {

result<void> find_gpu(std::uint32_t) {
  return fail(errc::bad_config, "this build has no CUDA: use --device cpu, or build where CMake "
                                "finds a CUDA toolkit (nvcc)");
}

result<std::unique_ptr<backend>> make_cuda_backend(const model_config&, const tensor_source&,
                                                   const numerics_profile&,
                                                   const cuda_backend_options&,
                                                   const prepare_options&) {
  return fail(find_gpu(0));
}

result<gpu_rates> measure_gpu(std::uint32_t device) {
  return fail(find_gpu(device));
}

result<std::vector<product_times>> measure_products(std::uint32_t device, const model_config&,
                                                    std::span<const std::uint32_t>) {
  return fail(find_gpu(device));
}

result<std::unique_ptr<communicator_maker>> open_nccl(std::uint32_t device, nccl_limits) {
  return fail(find_gpu(device));
}

} // namespace rollcast
