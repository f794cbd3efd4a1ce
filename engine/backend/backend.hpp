#pragma once

#include "engine/backend/device_weights.hpp"
#include "engine/base/error.hpp"
#include "engine/base/hash.hpp"
#include "engine/base/ids.hpp"
#include "engine/model/expert_layout.hpp"
#include "engine/numerics/profile.hpp"
#include "kernels/accept.hpp"
#include "kernels/attention.hpp"
#include "kernels/kv_copy.hpp"
#include "kernels/rope.hpp"
#include "kernels/sampling.hpp"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

namespace rollcast {

class activation_observer;
class tensor_source;

/// What a device is, once it holds a model and its KV blocks.
struct device_shape {
  std::uint32_t vocabulary = 0;
  std::uint32_t positions_max = 0; ///< Positions that the model's rotary table covers.
  std::uint32_t kv_blocks = 0;
  std::uint32_t block_tokens = 0;
  std::uint32_t rows_max = 0;       ///< Rows of one forward pass.
  std::uint32_t logit_rows_max = 0; ///< Rows of one forward pass whose logits are asked for.
  std::uint64_t kv_group_bytes = 0; ///< Bytes of `kernels::kv_group` positions, all layers.
  expert_layout experts = {};       ///< Of the ids that `backend::experts` gives.

  constexpr std::uint64_t kv_bytes_per_token() const noexcept {
    return kv_group_bytes / kernels::kv_group;
  }
};

/// The hidden states that a drafter wants of its target's rows, side by side: what the named layers
/// leave in the residual stream, then, with `last`, what the head reads, behind the final norm.
struct state_wish {
  std::vector<std::uint32_t> layers;
  bool last = false;

  bool empty() const noexcept { return layers.empty() && !last; }
};

/// The rows of one forward pass. Rows of a sequence are consecutive in every array.
///
/// Two sequences may be branches of one response: they share the blocks before the fork, and each
/// has blocks of its own from there on. What the block of the fork holds before it comes into the
/// branch's own block by `copies`, some of it from rows of this very pass.
struct forward_rows {
  std::span<const token_id> tokens;                       ///< [rows]
  std::span<const kernels::row_place> places;             ///< [rows]
  std::span<const kernels::attention_sequence> sequences; ///< Covers the rows, in order.
  std::span<const std::uint32_t> logit_rows;              ///< Ascending; rows that need logits.
  /// To be done in every layer after the rows' K and V are written and before any attention, in
  /// this order: a copy may read what an earlier one has written.
  std::span<const kernels::kv_slots> copies = {};
  bool keep_states = false;  ///< Keep what `backend::keep_states` asked for, of every row.
  bool keep_experts = false; ///< Keep the ids of the experts that every row was sent to.
  /// Of a drafter's model alone: [rows, state width], what a row takes in beside its token; with
  /// `own_states` what this model has left (`states` of a row before), not the target.
  std::span<const float> taken = {};
  bool own_states = false;
};

/// Drafts among the logit rows of a pass. The rows of a tree lie together, its root's row first.
struct drafted_rows {
  std::span<const kernels::tree_span> trees; ///< In the order of their rows; all rows are of one.
  std::span<const token_id> tokens;          ///< [logit rows]: that a row was fed.
  std::span<const std::uint32_t> parents;    ///< [logit rows]: node that a row's follows.
};

/// What verification leaves of them, as kernels/accept.hpp.
struct accepted_rows {
  std::span<kernels::accepted_path> paths; ///< [trees]
  std::span<std::uint32_t> nodes;          ///< [logit rows]
};

/// One device that holds one model: the seam between what is computed and where.
///
/// Every result row is a function of (weights, the row's token prefix, its position) alone, bit for
/// bit, whatever else is in the pass.
class backend {
public:
  virtual ~backend() = default;

  virtual const device_shape& shape() const noexcept = 0;
  virtual const numerics_profile& numerics() const noexcept = 0;
  /// Hash of the weights that are used.
  content_hash weights_hash() const noexcept { return weights()->hash(); }
  /// Token ids that end a response, from the checkpoint's configuration.
  virtual std::span<const token_id> eos_token_ids() const noexcept = 0;

  // -- weights ----------------------------------------------------------------

  /// The weights that are used; never null.
  virtual std::shared_ptr<const device_weights> weights() const noexcept = 0;

  /// Makes weights of the device's model ready beside those that are used, which it leaves alone.
  /// The one member that another thread may call while the owner's calls anything else.
  ///
  /// @param tensors  All of the model's, or, with `over`, those that differ from it.
  /// @param over     Made by this device; null if `tensors` is complete. Every tensor that is not
  ///                 in `tensors` is taken from it.
  /// @returns what was made: the same, bit for bit, with and without `over`. `bad_checkpoint` with
  ///          one line if a tensor is missing, unknown, of another shape or (with `over`) dtype, or
  ///          not finite; `bad_config` without memory; `cancelled` once `options.stop` says so.
  virtual result<std::shared_ptr<const device_weights>>
  prepare_weights(const tensor_source& tensors, const std::shared_ptr<const device_weights>& over,
                  const prepare_options& options) const = 0;

  /// Computes with other weights from the next pass on: exchanges a pointer. KV that was written
  /// before is of the weights before. @pre made by this device; no pass is running.
  virtual void use_weights(std::shared_ptr<const device_weights> weights) = 0;

  // -- passes -----------------------------------------------------------------

  /// Runs the rows through the model, writes their K and V, and keeps logits [logit_rows] for the
  /// calls below until the next pass. @pre every bound of `shape()` holds.
  virtual void forward(const forward_rows& rows) = 0;

  /// Logits [logit_rows, vocabulary] of the last pass; for tests and dumps. A device with its own
  /// memory copies them first.
  virtual std::span<const float> logits() = 0;

  /// Has passes that say so keep hidden states of all their rows. Changes no bit.
  /// @returns false from a device that cannot, and on a wish for a layer that there is not.
  virtual bool keep_states(const state_wish& which) { return which.empty(); }
  /// [rows, width of the wish] of the last pass that kept them, until the next that does.
  virtual std::span<const float> states() { return {}; }

  /// [rows], each `shape().experts.position_bytes()`: the ids of the experts that the router chose
  /// for the rows of the last pass that kept them, until the next that does. Integers of a total
  /// order of scores that are the same in every batch, so they are too. Empty of a dense model.
  virtual std::span<const std::byte> experts() { return {}; }

  /// Has a drafter's model take the embedding and the head that it lacks from its target's weights.
  /// @pre `target` was made by a device of the same kind, in the same arithmetic.
  virtual void borrow(std::shared_ptr<const device_weights> /*target*/) {}

  /// Shows the intermediate results of every later pass to `by`, which must live as long; null ends
  /// it. Changes no bit. @returns false from a device that cannot show them.
  virtual bool observe(activation_observer* by) { return by == nullptr; }

  /// Chooses a token for each logit row of the last pass. @pre sizes equal `logit_rows`.
  virtual void sample(std::span<const kernels::sample_params> how,
                      std::span<kernels::sampled_token> out) = 0;

  /// As `sample`, and follows what was chosen through the drafts. A device with its own memory does
  /// it there, before anything comes back. @pre sizes are as `drafts` and `accepted` say.
  virtual void sample_drafts(std::span<const kernels::sample_params> how,
                             const drafted_rows& drafts, std::span<kernels::sampled_token> out,
                             const accepted_rows& accepted) {
    sample(how, out);
    for (std::size_t i = 0; i < drafts.trees.size(); ++i)
      accepted.paths[i] =
        kernels::accept_draft(drafts.trees[i], drafts.tokens.data(), drafts.parents.data(),
                              out.data(), accepted.nodes.data());
  }

  /// Log-probability of a given token for each logit row of the last pass.
  virtual void score(std::span<const float> temperatures, std::span<const token_id> tokens,
                     std::span<float> out) = 0;

  /// Copies the KV of the first `groups` groups of the block list to or from `image`, laid out
  /// [layer][group]. @pre image.size() == groups * shape().kv_group_bytes.
  virtual void export_kv(std::span<const std::uint32_t> blocks, std::size_t groups,
                         std::span<std::byte> image) const = 0;
  virtual void import_kv(std::span<const std::uint32_t> blocks, std::size_t groups,
                         std::span<const std::byte> image) = 0;
};

} // namespace rollcast
