#pragma once

#include "engine/backend/backend.hpp"
#include "engine/base/error.hpp"
#include "engine/base/hash.hpp"
#include "engine/base/ids.hpp"
#include "engine/draft/drafter.hpp"
#include "engine/memory/kv_bytes.hpp"
#include "engine/step/request.hpp"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace rollcast {

/// Bounds of one engine. None of them can change a bit of a response, except that `context_max`,
/// which is part of what a cluster agrees on, ends one that has no room left.
struct engine_limits {
  std::uint32_t batch_max = 64;  ///< Responses that take part in one step.
  std::uint32_t rows_max = 512;  ///< Activation rows of one step (prefill budget); >= batch_max.
  std::uint32_t context_max = 0; ///< Tokens of prompt and response; at most the model's positions.
};

/// Identifies a KV image: what a target checks before it believes one.
struct kv_manifest {
  response_id response;
  std::uint32_t tokens = 0;  ///< Positions held.
  std::uint64_t bytes = 0;   ///< Size of the image.
  content_hash prefix;       ///< Of the token ids whose KV it is.
  content_hash content;      ///< Of the image's bytes.
  content_hash weights = {}; ///< That it was computed with.
};

/// A sequence whose tokens behind the prompt are to be scored.
struct score_request {
  std::span<const token_id> tokens; ///< The prompt, then what is scored.
  std::uint32_t prompt_tokens = 0;  ///< At least 1.
  float temperature = 1;
};

/// Continuous batching on one device: admits chunks, steps them together, keeps the KV of responses
/// between chunks, and exports or imports it. Not thread-safe; one thread owns it.
///
/// A response's tokens and log-probabilities depend on its own request alone: not on what else is
/// admitted, in which order, on any of `engine_limits`, or on whether its KV was resumed, imported
/// or recomputed. Held by tests/contract/engine_invariance_test.cpp.
class engine {
public:
  /// Takes a device that has weights and KV blocks.
  engine(std::unique_ptr<backend> device, engine_limits limits);
  ~engine();
  engine(engine&&) noexcept;
  engine& operator=(engine&&) noexcept;

  /// Has tokens drafted from the next step on; null ends it. Changes no bit of any response.
  void speculate(std::shared_ptr<drafter> by);

  // -- work -------------------------------------------------------------------

  /// Accepts a chunk. KV that is parked under the same response and whose tokens are a prefix of
  /// `request.tokens` is used; the rest is computed. Fails with `bad_prompt` (too long for the
  /// context, an id out of range, empty), `bad_sampling`, or `out_of_kv_blocks` (detail: need,
  /// free).
  result<void> admit(chunk_request request);

  /// Runs one step over what is admitted. @returns the chunks that ended, valid until the next call
  /// of a non-const member. Allocates nothing once the buffers have grown to their limits.
  std::span<const chunk_report> step();

  /// Ends every admitted chunk where it stands, between two tokens. @returns them like `step`, as
  /// chunks whose `budget` is used up; those that had not come to a token have none. What KV there
  /// is stays parked.
  std::span<const chunk_report> cut();
  /// The same for one response; nothing if it is not admitted.
  std::span<const chunk_report> cut(response_id response);

  /// True while a call of `step` would do something.
  bool has_work() const noexcept;

  /// Forgets a response in any state and frees its blocks. @returns false if it is not here.
  bool release(response_id response);

  // -- KV between chunks ------------------------------------------------------

  /// True if KV of the response is parked here.
  bool parked(response_id response) const noexcept;

  /// Copies the parked KV of `response` into `image` (resized). Fails with `out_of_kv_blocks` if it
  /// is not parked here. The engine keeps its copy until `release`.
  result<kv_manifest> export_kv(response_id response, kv_bytes& image) const;

  /// Parks an image received from another engine. Fails with `stale_epoch` (it was computed with
  /// other weights), `frame_malformed` (size or hash differ), or `out_of_kv_blocks`.
  result<void> import_kv(const kv_manifest& manifest, std::span<const std::byte> image);

  // -- weights ----------------------------------------------------------------

  /// Exchanges the weights, which takes no time: `device().prepare_weights` has made them, on any
  /// thread. Every parked KV is freed, because it belongs to the weights before. Fails with
  /// `bad_config`, and changes nothing, while anything is running or waiting.
  result<void> use_weights(std::shared_ptr<const device_weights> weights);

  // -- scoring ----------------------------------------------------------------

  /// Teacher-forced log-probabilities of the tokens behind each prompt, by the same forward pass
  /// and so with the same bits as generation. Rows of several sequences share a pass, which
  /// changes no bit either. Needs free blocks for the longest sequence alone, takes more while they
  /// are free, and leaves all of them free. `logprobs[i]` gets the values of `sequences[i]`.
  /// Fails, before anything is computed, with `bad_prompt` or `out_of_kv_blocks`.
  /// @param at  Weights to score with instead of those that are used, which are used again after;
  ///            what is admitted or parked stays as it is.
  result<void> score(std::span<const score_request> sequences,
                     std::vector<std::vector<float>>& logprobs,
                     const std::shared_ptr<const device_weights>& at = {});
  /// The same of one sequence.
  result<void> score(std::span<const token_id> tokens, std::uint32_t prompt_tokens,
                     float temperature, std::vector<float>& logprobs,
                     const std::shared_ptr<const device_weights>& at = {});

  // -- what an observer may ask ------------------------------------------------

  std::uint32_t running() const noexcept; ///< Responses that take part in steps.
  std::uint32_t waiting() const noexcept; ///< Admitted, not yet part of a step.
  kv_usage kv() const noexcept;
  const engine_stats& stats() const noexcept;
  const engine_limits& limits() const noexcept;
  const backend& device() const noexcept;

private:
  class state;
  std::unique_ptr<state> state_;
};

} // namespace rollcast
