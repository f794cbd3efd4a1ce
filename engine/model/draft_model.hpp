#pragma once

#include "engine/base/error.hpp"
#include "engine/base/ids.hpp"
#include "engine/model/config.hpp"
#include "engine/model/weights.hpp"
#include "kernels/types.hpp"

#include <filesystem>
#include <memory>
#include <vector>

namespace rollcast {

/// A drafter's checkpoint, loaded.
struct draft_model {
  std::shared_ptr<const model_weights> weights; ///< `config().draft` says what of.
  /// The target's token of each that the head can say; empty: they are the same.
  std::vector<token_id> target_ids;
};

/// True if a directory's config.json says that it is an EAGLE-3 head. Fails as `load_config` does
/// if it cannot be read.
result<bool> is_eagle3(const std::filesystem::path& directory);

/// Loads the drafter of a model, in the target's arithmetic, whatever dtype its files have.
///
/// `eagle3` reads `LlamaForCausalLMEagle3` as published (`midlayer.*`, or `layers.0.*`, with
/// `model.` before them or not): `fc`, `d2t` as differences, `t2d`, an embedding and a head of its
/// own or the target's. `mtp` reads the first MTP layer of a MiMo (`model.mtp_layers.0.*`), or that
/// behind the last layer of a GLM-4.5 or DeepSeek-V3; the directory may be the target's own, or
/// hold such a layer alone. Biases and norms of q and k are taken where the files have them.
///
/// @returns as `load_config` and `model_weights::load`; `bad_config` with one line for: a model
/// that
///          is no draft of that kind; EAGLE-1 and 2; a vocabulary or hidden size other than the
///          target's; layers that the target lacks. `bad_checkpoint` for vocabulary tables that are
///          missing, out of range or contradict each other.
result<draft_model> load_draft(const std::filesystem::path& directory, draft_kind kind,
                               const model_config& target, kernels::arithmetic how,
                               const load_options& options = {});

} // namespace rollcast
