#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace rollcast {

/// What a forward pass computes, in the order in which it does. The numbers are the order of a dump
/// (engine/dump).
enum class operation : std::uint8_t {
  embedding,  ///< [hidden], the residual stream before the first layer.
  input_norm, ///< [hidden]
  q,          ///< [heads * head_dim], after bias, norm and rotation; in a latent's space, if any.
  k,          ///< [kv_heads * head_dim], after bias, norm and rotation, as the KV cache holds it.
  v,          ///< [kv_heads * head_dim], after bias, as the KV cache holds it; the latent, if any.
  attention,  ///< [heads * head_dim], or of value heads behind a latent.
  o,          ///< [hidden], the residual stream with the attention's projection added.
  post_norm,  ///< [hidden]
  gate_up,    ///< [2 * intermediate], gate, then up; not in models with experts.
  gated,      ///< [intermediate], silu(gate) * up; not in models with experts.
  down,       ///< [hidden], the residual stream with the FFN's projection added.
  final_norm, ///< [hidden]; this and what follows of rows that need logits.
  logits,     ///< [vocabulary]
  logprob,    ///< [1], of the token that was scored.
};

inline constexpr std::array<std::string_view, 14> operation_names{
  "embedding", "input_norm", "q",     "k",    "v",          "attention", "o",
  "post_norm", "gate_up",    "gated", "down", "final_norm", "logits",    "logprob"};

constexpr std::string_view name_of(operation what) noexcept {
  return operation_names[static_cast<std::size_t>(what)];
}

/// True for what every layer does once.
constexpr bool in_layers(operation what) noexcept {
  return what >= operation::input_norm && what <= operation::down;
}

/// True for what is done only for rows whose logits are asked for.
constexpr bool of_logit_rows(operation what) noexcept {
  return what >= operation::final_norm;
}

/// Rows that one operation of a pass has left, in memory that the host reads.
struct observed_rows {
  operation what{};
  std::uint32_t layer = 0; ///< 0 for what is not in layers.
  /// Absolute position of each row in its sequence, in the order of the pass.
  std::span<const std::uint32_t> positions;
  const float* values = nullptr; ///< Of the first row; the others follow at `stride`.
  std::size_t columns = 0;
  std::size_t stride = 0;
};

/// Sees every intermediate result of a device's passes. Called on the thread that runs the pass, in
/// the order of `operation` within a layer; what it is shown may be gone when it returns.
class activation_observer {
public:
  virtual ~activation_observer() = default;
  virtual void see(const observed_rows& rows) = 0;
};

} // namespace rollcast
