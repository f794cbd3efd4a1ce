#pragma once

#include "cluster/wire/messages.hpp"
#include "engine/base/error.hpp"
#include "engine/base/hash.hpp"
#include "engine/base/ids.hpp"
#include "engine/model/expert_layout.hpp"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

/// What a scheduler must not forget. Plain values; `journal` keeps them on disk, `batch_book` and
/// the scheduler write them as things happen and are made anew from what they come to (`image`).
namespace rollcast::journal {

/// A batch was taken on. Its responses have consecutive ids from `first_response`, its groups from
/// `first_group`.
struct batch_submitted {
  batch_id id;
  std::shared_ptr<const wire::submit_batch> spec;
  std::uint64_t first_response = 0;
  std::uint64_t first_group = 0;
  std::string owner = {}; ///< The client whose batch it is; "" is everybody's.
};

/// Its responses may be placed, at this profile and weight version.
struct batch_started {
  batch_id id;
  std::string numerics_profile;
  std::uint64_t weight_version = 0;
  expert_layout experts = {}; ///< Of the model; of no use unless the batch asks for ids.
};

/// A chunk of a response has ended.
struct chunk_edge {
  batch_id id;
  std::uint64_t ordinal = 0;  ///< Of the response in its batch.
  std::uint32_t position = 0; ///< Tokens that it had before.
  std::uint64_t weight_version = 0;
  std::vector<token_id> tokens;
  std::vector<float> logprobs;    ///< One a token.
  std::vector<float> kept_masses; ///< One a token; empty when all are 1.
  /// Ids of experts of the positions that come with the tokens (`routed_positions`); empty unless
  /// the batch asks for them.
  std::vector<std::byte> experts = {};
};

/// A response has its result number: one more than the last of its batch.
struct response_finished {
  batch_id id;
  std::uint64_t ordinal = 0;
  wire::finish_reason reason = wire::finish_reason::stop;
};

/// It cannot go on: what is unfinished is cancelled next, and its end tells this.
struct batch_failed {
  batch_id id;
  error why;
};

/// All its responses are finished.
struct batch_ended {
  batch_id id;
  wire::batch_summary summary;
};

/// Its controller has all results up to here; their contents are not needed any more.
struct results_acknowledged {
  batch_id id;
  std::uint64_t sequence = 0;
};

/// The batch and its key are gone.
struct batch_forgotten {
  batch_id id;
};

/// What the cluster is, from its first worker on: every other must match. Without a model it is
/// open again.
struct cluster_identity {
  std::string model;
  std::string numerics;
  content_hash numerics_hash = {};
  std::uint32_t vocabulary = 0;
  std::uint32_t context_max = 0;
  std::string eos_token_ids; ///< int32, little-endian.
  friend bool operator==(const cluster_identity&, const cluster_identity&) = default;
};

/// The fleet serves these weights, or is about to be told to.
struct epoch_decided {
  std::uint64_t epoch = 0;
  content_hash weights = {};
  friend bool operator==(const epoch_decided&, const epoch_decided&) = default;
};

/// This number was given to an update, which may come to nothing; no other gets it.
struct epoch_promised {
  std::uint64_t epoch = 0;
};

using record = std::variant<batch_submitted, batch_started, chunk_edge, response_finished,
                            batch_failed, batch_ended, results_acknowledged, batch_forgotten,
                            cluster_identity, epoch_decided, epoch_promised>;

/// Where records go, in the order in which things happened.
class sink {
public:
  virtual ~sink() = default;
  /// Takes one more. Does not block or fail.
  virtual void write(record what) = 0;
};

// -- what records come to -------------------------------------------------------------------------

/// A response at its last edge.
struct response_image {
  std::vector<token_id> tokens;   ///< Empty once its result is acknowledged, so are
  std::vector<float> logprobs;    ///< these
  std::vector<float> kept_masses; ///< and these, one a token,
  std::vector<std::byte> experts; ///< and these.
  struct version_start {
    std::uint64_t version = 0;
    std::uint32_t start = 0;
    friend bool operator==(const version_start&, const version_start&) = default;
  };
  std::vector<version_start> versions;
  std::uint64_t sequence = 0; ///< Its number as a result, from 1; 0 while unfinished.
  wire::finish_reason reason = wire::finish_reason::stop;
  friend bool operator==(const response_image&, const response_image&) = default;
};

/// A batch. Times are nanoseconds of the system's clock since 1970, 0 for what was not yet.
struct batch_image {
  batch_id id;
  wire::submit_batch spec;     ///< Without groups once its end is acknowledged.
  content_hash spec_hash = {}; ///< `hash_of(spec)` when it was submitted.
  std::uint64_t first_response = 0;
  std::uint64_t first_group = 0;
  std::uint64_t groups = 0;
  std::uint64_t size = 0; ///< Responses.
  std::optional<batch_started> started;
  std::string owner;
  std::optional<error> failure;
  std::optional<batch_ended> ended;
  std::uint64_t acknowledged = 0;
  std::uint64_t tokens_acknowledged = 0; ///< Of results that are acknowledged: no longer in them.
  std::vector<response_image> responses; ///< By ordinal; empty once its end is acknowledged.
  std::uint64_t submitted_unix_ns = 0;
  std::uint64_t started_unix_ns = 0;
  std::uint64_t ended_unix_ns = 0;
};

/// Everything that a journal knows.
struct image {
  /// Of the scheduler process that opened it, from 1: what it numbers itself begins above what any
  /// process before it can have used.
  std::uint64_t generation = 1;
  std::uint64_t next_batch = 1; ///< First numbers that were never used.
  std::uint64_t next_group = 1;
  std::uint64_t next_response = 1;
  std::optional<cluster_identity> identity;
  std::optional<epoch_decided> weights;
  std::uint64_t epoch_promised = 0; ///< The highest.
  std::vector<batch_image> batches; ///< By id, ascending.
};

} // namespace rollcast::journal
