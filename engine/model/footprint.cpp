#include "engine/model/footprint.hpp"

#include "engine/model/tensor_info.hpp"
#include "engine/model/tensor_plan.hpp"
#include "kernels/gemm.hpp"

#include <map>
#include <tuple>

namespace rollcast {

namespace {

/// Tensors that share one packed matrix: q, k and v; gate and up, of experts too; every other
/// alone.
tensor_role matrix_of(tensor_role role) {
  switch (role) {
    case tensor_role::k:
    case tensor_role::v:
    case tensor_role::q_a:
    case tensor_role::kv_a: return tensor_role::q;
    case tensor_role::up: return tensor_role::gate;
    case tensor_role::shared_up: return tensor_role::shared_gate;
    case tensor_role::expert_up: return tensor_role::expert_gate;
    default: return role;
  }
}

struct matrix {
  std::size_t n = 0;
  std::size_t k = 0;
  bool exact = true; ///< Every part is bf16.
};

} // namespace

result<weight_footprint>
weight_footprint_of(const model_config& config, kernels::arithmetic how,
                    const std::function<result<kernels::dtype>(const std::string&)>& type_of) {
  weight_footprint out;
  std::map<std::tuple<std::size_t, tensor_role, std::size_t>, matrix> matrices;
  const auto add = [&](std::size_t layer, const tensor_info& tensor, tensor_role role,
                       std::size_t expert = 0) {
    auto& m = matrices[{layer, role, expert}];
    m.n += tensor.shape[0];
    m.k = tensor.shape[1];
    m.exact = m.exact && tensor.type == kernels::dtype::bf16;
  };
  for (const auto& planned : plan_tensors(config)) {
    const auto type = type_of(planned.name);
    if (!type)
      return fail(type);
    const tensor_info tensor{planned.name, *type, planned.shape, {}};
    const auto bytes = bytes_of(tensor);
    out.checkpoint += bytes;
    out.parameters += bytes / kernels::size_of(*type);
    if (planned.role == tensor_role::embedding) {
      out.packed += bytes; // row-major, for lookups
      if (config.tie_embeddings)
        add(config.layers, tensor, tensor_role::lm_head);
    } else if (planned.role == tensor_role::kv_b) {
      const auto& latent = config.latent;
      const std::size_t heads = config.heads;
      add(planned.layer, {{}, *type, {heads * latent.rank, latent.nope}, {}}, tensor_role::kv_b, 0);
      add(planned.layer, {{}, *type, {heads * latent.value, latent.rank}, {}}, tensor_role::kv_b,
          1);
    } else if (planned.shape.size() == 2) {
      const bool head = planned.role == tensor_role::lm_head;
      add(head ? config.layers : planned.layer, tensor, matrix_of(planned.role), planned.expert);
    }
  }
  for (const auto& [place, m] : matrices) {
    const bool rounded =
      how == kernels::arithmetic::bf16 && std::get<1>(place) != tensor_role::router;
    const bool half = m.exact || rounded;
    out.packed +=
      kernels::packed_bytes(half ? kernels::dtype::bf16 : kernels::dtype::f32, m.n, m.k);
  }
  return out;
}

kernels::kv_layout kv_layout_of(const model_config& config, kernels::dtype kv_type,
                                std::uint32_t block_tokens) noexcept {
  return {nullptr, block_tokens, config.kv_heads, config.head_dim, kv_type, config.latent.rank};
}

std::uint64_t kv_block_bytes(const model_config& config, kernels::dtype kv_type,
                             std::uint32_t block_tokens) noexcept {
  return config.layers * kv_layout_of(config, kv_type, block_tokens).block_bytes();
}

} // namespace rollcast
