#include "cluster/wire/codec_weights.hpp"

#include "cluster/wire/validate.hpp"

#include <algorithm>
#include <charconv>
#include <optional>
#include <string_view>
#include <utility>

namespace rollcast::wire {
namespace {

constexpr std::pair<kernels::dtype, std::string_view> dtype_names[] = {
  {kernels::dtype::f32, "F32"}, {kernels::dtype::bf16, "BF16"}, {kernels::dtype::f16, "F16"}};

std::string_view name_of(kernels::dtype type) {
  return std::find_if(std::begin(dtype_names), std::end(dtype_names),
                      [&](const auto& x) { return x.first == type; })
    ->second;
}

std::optional<kernels::dtype> dtype_of(std::string_view name) {
  for (const auto& [type, its_name] : dtype_names)
    if (its_name == name)
      return type;
  return std::nullopt;
}

/// Reads what `to_string(content_hash)` writes.
std::optional<content_hash> hash_of_text(std::string_view text) {
  constexpr auto digits = std::string_view{"0123456789abcdef"};
  if (text.size() != 32 || text.find_first_not_of(digits) != std::string_view::npos)
    return std::nullopt;
  content_hash hash;
  std::from_chars(text.data(), text.data() + 16, hash.high, 16);
  std::from_chars(text.data() + 16, text.data() + 32, hash.low, 16);
  return hash;
}

/// A text of a peer, fit for a line of ours.
std::string shown(std::string_view text) {
  return has_control_character(text) ? std::to_string(text.size()) + " bytes"
                                     : "'" + clipped(text, 40) + "'";
}

result<weight_flip> flip_of(v1::WeightFlip from) {
  if (from == v1::WEIGHT_FLIP_BETWEEN_BATCHES)
    return weight_flip::between_batches;
  if (from == v1::WEIGHT_FLIP_CHUNK_EDGE)
    return weight_flip::chunk_edge;
  return fail(errc::frame_malformed,
              "weight flip " + std::to_string(static_cast<int>(from))
                + " is none that we know: 0 is between batches, 1 at chunk edges");
}

v1::WeightFlip to_wire(weight_flip flip) {
  return static_cast<v1::WeightFlip>(flip);
}

} // namespace

// -- requests to the wire -------------------------------------------------------------------------

void to_wire(const score& from, v1::Envelope& envelope) {
  auto* to = envelope.mutable_score();
  for (const auto& sequence : from.sequences) {
    auto* added = to->add_sequences();
    assign(added->mutable_token_ids(), sequence.token_ids);
    added->set_prompt_tokens(sequence.prompt_tokens);
    added->set_temperature(sequence.temperature);
  }
  if (from.weight_version)
    to->set_weight_version(*from.weight_version);
}

void to_wire(const begin_weights& from, v1::Envelope& envelope) {
  auto* to = envelope.mutable_begin_weights();
  to->set_epoch(from.epoch);
  to->set_changed_only(from.changed_only);
  to->set_flip(to_wire(from.flip));
  to->set_allow_non_finite(from.allow_non_finite);
}

void to_wire(const weight_bucket& from, v1::Envelope& envelope) {
  auto* to = envelope.mutable_weight_bucket();
  to->set_epoch(from.epoch);
  to->set_bucket(from.bucket);
  for (const auto& slice : from.slices) {
    auto* added = to->add_slices();
    added->set_name(slice.name);
    const auto dtype = name_of(slice.type);
    added->set_dtype(dtype.data(), dtype.size());
    assign(added->mutable_shape(), slice.shape);
    added->set_offset(slice.offset);
    added->set_data(slice.data);
  }
}

void to_wire(const commit_weights& from, v1::Envelope& envelope) {
  auto* to = envelope.mutable_commit_weights();
  to->set_epoch(from.epoch);
  if (from.hash)
    to->set_content_hash(to_string(*from.hash));
  if (from.tensors)
    to->set_tensors(*from.tensors);
}

void to_wire(const abort_weights& from, v1::Envelope& envelope) {
  envelope.mutable_abort_weights()->set_epoch(from.epoch);
}

void to_wire(const load_weights& from, v1::Envelope& envelope) {
  auto* to = envelope.mutable_load_weights();
  to->set_directory(from.directory);
  to->set_epoch(from.epoch);
  to->set_flip(to_wire(from.flip));
  to->set_allow_non_finite(from.allow_non_finite);
}

void to_wire(const rollback_weights&, v1::Envelope& envelope) {
  envelope.mutable_rollback_weights();
}

void to_wire(const pause&, v1::Envelope& envelope) {
  envelope.mutable_pause();
}

void to_wire(const resume&, v1::Envelope& envelope) {
  envelope.mutable_resume();
}

// -- requests from the wire -----------------------------------------------------------------------

result<request> from_wire(const v1::BeginWeights& from) {
  const auto flip = flip_of(from.flip());
  if (!flip)
    return fail(flip);
  return begin_weights{.epoch = from.epoch(),
                       .changed_only = from.changed_only(),
                       .flip = *flip,
                       .allow_non_finite = from.allow_non_finite()};
}

result<request> from_wire(v1::WeightBucket& from) {
  weight_bucket bucket{.epoch = from.epoch(), .bucket = from.bucket(), .slices = {}};
  bucket.slices.reserve(static_cast<std::size_t>(from.slices_size()));
  for (auto& slice : *from.mutable_slices()) {
    const auto refuse = [&](const std::string& why) {
      return fail(errc::bad_checkpoint, "bucket " + std::to_string(from.bucket()) + ", slice "
                                          + std::to_string(bucket.slices.size()) + ": " + why);
    };
    const auto type = dtype_of(slice.dtype());
    if (!type)
      return refuse("dtype " + shown(slice.dtype()) + ", give F32, BF16 or F16");
    const auto dims = static_cast<std::size_t>(slice.shape_size());
    if (dims > limits.tensor_dims) // here too, because each is a byte on the wire and eight copied
      return refuse(too_many_dims(dims));
    bucket.slices.push_back({.name = std::move(*slice.mutable_name()),
                             .type = *type,
                             .shape = to_vector<std::size_t>(slice.shape()),
                             .offset = slice.offset(),
                             .data = std::move(*slice.mutable_data())});
  }
  return bucket;
}

result<request> from_wire(const v1::CommitWeights& from) {
  commit_weights commit{.epoch = from.epoch(), .hash = {}, .tensors = {}};
  if (!from.content_hash().empty()) {
    commit.hash = hash_of_text(from.content_hash());
    if (!commit.hash)
      return fail(errc::bad_checkpoint, "content_hash " + shown(from.content_hash())
                                          + " is not 32 lower-case hexadecimal digits");
  }
  if (from.has_tensors())
    commit.tensors = from.tensors();
  return commit;
}

result<request> from_wire(const v1::LoadWeights& from) {
  const auto flip = flip_of(from.flip());
  if (!flip)
    return fail(flip);
  return load_weights{.directory = from.directory(),
                      .epoch = from.epoch(),
                      .flip = *flip,
                      .allow_non_finite = from.allow_non_finite()};
}

result<request> from_wire(const v1::Score& from) {
  score what;
  what.sequences.reserve(static_cast<std::size_t>(from.sequences_size()));
  for (const auto& sequence : from.sequences())
    what.sequences.push_back(
      {.token_ids = to_vector<token_id>(sequence.token_ids()),
       .prompt_tokens = sequence.prompt_tokens(),
       .temperature = sequence.has_temperature() ? sequence.temperature() : 1.0f});
  if (from.has_weight_version())
    what.weight_version = from.weight_version();
  return what;
}

// -- answers to the wire --------------------------------------------------------------------------

void to_wire(const weights_begun& from, v1::Envelope& envelope) {
  auto* to = envelope.mutable_weights_begun();
  to->set_epoch(from.epoch);
  to->set_bucket_bytes_max(from.bucket_bytes_max);
}

void to_wire(const weights_served& from, v1::Envelope& envelope) {
  auto* to = envelope.mutable_weights_served();
  to->set_epoch(from.epoch);
  to->set_content_hash(to_string(from.hash));
  to->set_tensors(from.tensors);
  to->set_bytes(from.bytes);
  for (const auto& phase : from.phases) {
    auto* added = to->add_phases();
    added->set_phase(phase.phase);
    added->set_seconds(phase.seconds);
  }
  to->set_pause_s(from.pause_s);
  to->set_workers(from.workers);
}

void to_wire(const scored& from, v1::Envelope& envelope) {
  auto* to = envelope.mutable_scored();
  for (const auto& row : from.rows)
    assign(to->add_rows()->mutable_logprobs(), row.logprobs);
  to->set_weight_version(from.weight_version);
  to->set_numerics_profile(from.numerics_profile);
}

void to_wire(const weights_status& from, v1::WeightsStatus* to) {
  to->set_phase(from.phase);
  to->set_epoch(from.epoch);
  to->set_next_epoch(from.next_epoch);
  to->set_bytes_total(from.bytes_total);
  to->set_seconds(from.seconds);
  for (const auto& worker : from.workers) {
    auto* added = to->add_workers();
    added->set_worker(worker.worker.value);
    added->set_bytes(worker.bytes);
    added->set_prepared(worker.prepared);
  }
  to->set_previous_epoch(from.previous_epoch);
  to->set_paused(from.paused);
}

// -- answers from the wire ------------------------------------------------------------------------

event from_wire(const v1::WeightsBegun& from) {
  return weights_begun{.epoch = from.epoch(), .bucket_bytes_max = from.bucket_bytes_max()};
}

result<event> from_wire(const v1::WeightsServed& from) {
  const auto hash = hash_of_text(from.content_hash());
  if (!hash)
    return fail(errc::frame_malformed,
                "epoch " + std::to_string(from.epoch())
                  + " is served with a content hash that is none: " + shown(from.content_hash()));
  weights_served served{.epoch = from.epoch(),
                        .hash = *hash,
                        .tensors = from.tensors(),
                        .bytes = from.bytes(),
                        .phases = {},
                        .pause_s = from.pause_s(),
                        .workers = from.workers()};
  for (const auto& phase : from.phases())
    served.phases.push_back({phase.phase(), phase.seconds()});
  return served;
}

event from_wire(const v1::Scored& from) {
  scored answer{.rows = {},
                .weight_version = from.weight_version(),
                .numerics_profile = from.numerics_profile()};
  answer.rows.reserve(static_cast<std::size_t>(from.rows_size()));
  for (const auto& row : from.rows())
    answer.rows.push_back({to_vector<float>(row.logprobs())});
  return answer;
}

weights_status from_wire(const v1::WeightsStatus& from) {
  weights_status status{.phase = from.phase(),
                        .epoch = from.epoch(),
                        .next_epoch = from.next_epoch(),
                        .bytes_total = from.bytes_total(),
                        .seconds = from.seconds(),
                        .workers = {},
                        .previous_epoch = from.previous_epoch(),
                        .paused = from.paused()};
  for (const auto& worker : from.workers())
    status.workers.push_back({worker_id{worker.worker()}, worker.bytes(), worker.prepared()});
  return status;
}

} // namespace rollcast::wire
