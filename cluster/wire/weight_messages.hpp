#pragma once

#include "engine/base/hash.hpp"
#include "engine/base/ids.hpp"
#include "engine/model/tensor_info.hpp"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

/// Of weight updates, scoring and pausing: the part of messages.hpp that came with them.
namespace rollcast::wire {

// -- requests -------------------------------------------------------------------------------------

/// When serving changes over to a new epoch. Numbers as on the wire.
enum class weight_flip : std::uint8_t {
  between_batches = 0, ///< A response is made by one epoch.
  chunk_edge = 1,      ///< Running responses go on with the new epoch at their next chunk.
};

struct begin_weights {
  std::uint64_t epoch = 0;   ///< 0: the next.
  bool changed_only = false; ///< Tensors that are not sent stay as they are.
  weight_flip flip = weight_flip::between_batches;
  bool allow_non_finite = false;
  friend bool operator==(const begin_weights&, const begin_weights&) = default;
};

/// A run of bytes of one tensor; whole elements, within the tensor.
struct tensor_slice {
  std::string name; ///< As in a Hugging Face checkpoint.
  kernels::dtype type = kernels::dtype::f32;
  std::vector<std::size_t> shape; ///< Of the whole tensor, row-major.
  std::uint64_t offset = 0;       ///< In the tensor, in bytes.
  std::string data;               ///< Little-endian elements; moved out of the parsed message.
  friend bool operator==(const tensor_slice&, const tensor_slice&) = default;
};

struct weight_bucket {
  std::uint64_t epoch = 0;
  std::uint64_t bucket = 0; ///< 1, 2, ...; whether it came before is the coordinator's to know.
  std::vector<tensor_slice> slices;
  friend bool operator==(const weight_bucket&, const weight_bucket&) = default;
};

struct commit_weights {
  std::uint64_t epoch = 0;
  std::optional<content_hash> hash;     ///< To compare with.
  std::optional<std::uint64_t> tensors; ///< How many were sent, to compare with.
  friend bool operator==(const commit_weights&, const commit_weights&) = default;
};

struct abort_weights {
  std::uint64_t epoch = 0; ///< 0: whichever is under way.
  friend bool operator==(const abort_weights&, const abort_weights&) = default;
};

struct load_weights {
  std::string directory;   ///< Of a checkpoint, as the scheduler's machine names it.
  std::uint64_t epoch = 0; ///< 0: the next.
  weight_flip flip = weight_flip::between_batches;
  bool allow_non_finite = false;
  friend bool operator==(const load_weights&, const load_weights&) = default;
};

struct rollback_weights {
  friend bool operator==(const rollback_weights&, const rollback_weights&) = default;
};

struct pause {
  friend bool operator==(const pause&, const pause&) = default;
};

struct resume {
  friend bool operator==(const resume&, const resume&) = default;
};

struct score_sequence {
  std::vector<token_id> token_ids; ///< The prompt, then what is scored.
  std::uint32_t prompt_tokens = 1; ///< 1..token_ids.size().
  float temperature = 1;           ///< That the tokens were drawn with.
  friend bool operator==(const score_sequence&, const score_sequence&) = default;
};

struct score {
  std::vector<score_sequence> sequences;
  std::optional<std::uint64_t> weight_version; ///< None: the one served now.
  friend bool operator==(const score&, const score&) = default;
};

// -- answers --------------------------------------------------------------------------------------

struct weights_begun {
  std::uint64_t epoch = 0;
  std::uint64_t bucket_bytes_max = 0; ///< Data of all slices of a bucket.
  friend bool operator==(const weights_begun&, const weights_begun&) = default;
};

struct phase_seconds {
  std::string phase; ///< As in `weights_status`.
  double seconds = 0;
  friend bool operator==(const phase_seconds&, const phase_seconds&) = default;
};

/// Every live worker serves this epoch.
struct weights_served {
  std::uint64_t epoch = 0;
  content_hash hash;
  std::uint64_t tensors = 0;
  std::uint64_t bytes = 0;
  std::vector<phase_seconds> phases; ///< In order.
  double pause_s = 0;                ///< How long serving paused for the flip.
  std::uint64_t workers = 0;
  friend bool operator==(const weights_served&, const weights_served&) = default;
};

/// One element a token from `prompt_tokens` on; a float keeps its bits on the wire.
struct scored_row {
  std::vector<float> logprobs;
  friend bool operator==(const scored_row&, const scored_row&) = default;
};

struct scored {
  std::vector<scored_row> rows; ///< One a sequence, in order.
  std::uint64_t weight_version = 0;
  std::string numerics_profile;
  friend bool operator==(const scored&, const scored&) = default;
};

/// How far one worker is with the update under way.
struct worker_weights {
  worker_id worker;
  std::uint64_t bytes = 0; ///< Received.
  bool prepared = false;
  friend bool operator==(const worker_weights&, const worker_weights&) = default;
};

/// The part of `status_report` about weights.
struct weights_status {
  std::string phase = "idle"; ///< idle, receiving, distributing, waiting, flipping.
  std::uint64_t epoch = 0;
  std::uint64_t next_epoch = 0;  ///< Of the update under way; 0: none.
  std::uint64_t bytes_total = 0; ///< Of the update, to each worker.
  double seconds = 0;            ///< Since it began.
  std::vector<worker_weights> workers;
  std::uint64_t previous_epoch = 0; ///< Held for a rollback; 0: none.
  bool paused = false;
  friend bool operator==(const weights_status&, const weights_status&) = default;
};

} // namespace rollcast::wire
