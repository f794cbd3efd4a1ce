#include "cluster/wire/codec.hpp"
#include "cluster/wire/codec_weights.hpp"
#include "cluster/wire/envelope.hpp"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/wire_format_lite.h>

#include <algorithm>
#include <iterator>
#include <utility>

namespace rollcast::wire {
namespace {

using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;

constexpr std::uint32_t length_delimited(int field) {
  return (static_cast<std::uint32_t>(field) << 3) | WireFormatLite::WIRETYPE_LENGTH_DELIMITED;
}

/// A part of a request that may take two bytes on the wire and a hundred once parsed, and how many
/// of it one message may have.
struct bounded_part {
  int request;
  int part;
  std::size_t most;
  const char* owner; ///< "the batch has "
  const char* what;  ///< "groups"
};

constexpr bounded_part bounded_parts[] = {
  {v1::Envelope::kSubmitBatchFieldNumber, v1::SubmitBatch::kGroupsFieldNumber, limits.groups,
   "the batch has ", "groups"},
  {v1::Envelope::kWeightBucketFieldNumber, v1::WeightBucket::kSlicesFieldNumber, limits.slices,
   "the bucket has ", "slices"},
  {v1::Envelope::kScoreFieldNumber, v1::Score::kSequencesFieldNumber, limits.sequences,
   "the request has ", "sequences"},
};

/// Counts a part of one request. @returns false when the bytes are malformed.
bool count_parts(CodedInputStream& in, int part, std::size_t& count) {
  std::uint32_t length = 0;
  if (!in.ReadVarint32(&length) || length > limits.message_bytes)
    return false;
  const auto outer = in.PushLimit(static_cast<int>(length));
  while (const auto tag = in.ReadTag()) {
    count += tag == length_delimited(part);
    if (!WireFormatLite::SkipField(&in, tag))
      return false;
  }
  const bool whole = in.BytesUntilLimit() == 0;
  in.PopLimit(outer);
  return whole;
}

/// Counts what would grow in memory before anything is parsed.
result<void> bound_parts(std::span<const std::byte> bytes) {
  CodedInputStream in{reinterpret_cast<const std::uint8_t*>(bytes.data()),
                      static_cast<int>(bytes.size())};
  std::size_t counts[std::size(bounded_parts)] = {};
  while (const auto tag = in.ReadTag()) {
    const auto* bound =
      std::find_if(std::begin(bounded_parts), std::end(bounded_parts),
                   [tag](const bounded_part& b) { return tag == length_delimited(b.request); });
    const bool read = bound != std::end(bounded_parts)
                        ? count_parts(in, bound->part, counts[bound - bounded_parts])
                        : WireFormatLite::SkipField(&in, tag);
    if (!read)
      return no_envelope(bytes.size());
  }
  for (std::size_t i = 0; i < std::size(bounded_parts); ++i)
    if (counts[i] > bounded_parts[i].most)
      return fail(errc::frame_too_large, bounded_parts[i].owner + std::to_string(counts[i]) + " "
                                           + bounded_parts[i].what + ", at most "
                                           + std::to_string(bounded_parts[i].most)
                                           + " are allowed: split it");
  return {};
}

// -- from the wire --------------------------------------------------------------------------------

sampling_params merged(const v1::Sampling& from, sampling_params base) {
  if (from.has_temperature())
    base.temperature = from.temperature();
  if (from.has_top_p())
    base.top_p = from.top_p();
  if (from.has_top_k())
    base.top_k = from.top_k();
  if (from.has_min_p())
    base.min_p = from.min_p();
  if (from.has_max_new_tokens())
    base.max_new_tokens = from.max_new_tokens();
  if (from.has_min_new_tokens())
    base.min_new_tokens = from.min_new_tokens();
  if (from.has_stop_token_ids())
    base.stop_token_ids = to_vector<token_id>(from.stop_token_ids().ids());
  if (from.has_ignore_eos())
    base.ignore_eos = from.ignore_eos();
  return base;
}

prompt_group from_wire(const v1::Group& from, const sampling_params& batch) {
  prompt_group group{.id = from.id(),
                     .prompt_token_ids = to_vector<token_id>(from.prompt_token_ids()),
                     .group_size = from.group_size(),
                     .seed = {},
                     .sampling = {}};
  if (from.has_seed())
    group.seed = from.seed();
  if (from.has_sampling())
    group.sampling = merged(from.sampling(), batch);
  return group;
}

submit_batch from_wire(const v1::SubmitBatch& from) {
  submit_batch batch;
  batch.batch_key = from.batch_key();
  batch.sampling = merged(from.sampling(), {});
  batch.groups.reserve(static_cast<std::size_t>(from.groups_size()));
  for (const auto& group : from.groups())
    batch.groups.push_back(from_wire(group, batch.sampling));
  batch.seed = from.seed();
  if (from.has_required_weight_version())
    batch.required_weight_version = from.required_weight_version();
  batch.policy = from.policy();
  if (from.has_chunk_tokens())
    batch.chunk_tokens = from.chunk_tokens();
  batch.force_migration = from.force_migration();
  batch.echo_prompts = from.echo_prompts();
  if (from.has_routed_experts_from())
    batch.routed_experts_from = from.routed_experts_from();
  return batch;
}

result<request> unknown_request(const v1::Envelope& envelope) {
  const auto field = static_cast<int>(envelope.body_case());
  return fail(errc::frame_malformed, field == 0
                                       ? std::string{"the message has no body that we know"}
                                       : "body number " + std::to_string(field)
                                           + " is no request, controllers may not send it");
}

/// Not const, because the data of a bucket is moved out.
result<request> request_of(v1::Envelope& envelope) {
  using body = v1::Envelope;
  switch (envelope.body_case()) {
    case body::kSubmitBatch: return from_wire(envelope.submit_batch());
    case body::kCancelBatch: return cancel_batch{envelope.cancel_batch().batch_key()};
    case body::kAckResults:
      return ack_results{envelope.ack_results().batch_key(), envelope.ack_results().sequence()};
    case body::kResumeResults:
      return resume_results{envelope.resume_results().batch_key(),
                            envelope.resume_results().after_sequence()};
    case body::kGetStatus: return get_status{};
    case body::kScore: return wire::from_wire(envelope.score());
    case body::kBeginWeights: return wire::from_wire(envelope.begin_weights());
    case body::kWeightBucket: return wire::from_wire(*envelope.mutable_weight_bucket());
    case body::kCommitWeights: return wire::from_wire(envelope.commit_weights());
    case body::kAbortWeights: return abort_weights{envelope.abort_weights().epoch()};
    case body::kLoadWeights: return wire::from_wire(envelope.load_weights());
    case body::kRollbackWeights: return rollback_weights{};
    case body::kPause: return pause{};
    case body::kResume: return resume{};
    case body::kBatchAccepted:
    case body::kOk:
    case body::kStatus:
    case body::kError:
    case body::kResult:
    case body::kBatchDone:
    case body::kWeightsBegun:
    case body::kWeightsServed:
    case body::kScored:
    case body::BODY_NOT_SET: break;
  }
  return unknown_request(envelope);
}

result<void> validate_body(const request& body) {
  return std::visit(
    [](const auto& x) -> result<void> {
      if constexpr (requires { wire::validate(x); })
        return wire::validate(x);
      else if constexpr (requires { x.batch_key; })
        return validate_batch_key(x.batch_key);
      else
        return {};
    },
    body);
}

// -- to the wire ----------------------------------------------------------------------------------

void to_wire(const sampling_params& from, v1::Sampling* to) {
  to->set_temperature(from.temperature);
  to->set_top_p(from.top_p);
  to->set_top_k(from.top_k);
  to->set_min_p(from.min_p);
  to->set_max_new_tokens(from.max_new_tokens);
  to->set_min_new_tokens(from.min_new_tokens);
  assign(to->mutable_stop_token_ids()->mutable_ids(), from.stop_token_ids);
  to->set_ignore_eos(from.ignore_eos);
}

void to_wire(const prompt_group& from, v1::Group* to) {
  to->set_id(from.id);
  assign(to->mutable_prompt_token_ids(), from.prompt_token_ids);
  to->set_group_size(from.group_size);
  if (from.seed)
    to->set_seed(*from.seed);
  if (from.sampling)
    to_wire(*from.sampling, to->mutable_sampling());
}

void to_wire(const submit_batch& from, v1::SubmitBatch* to) {
  to->set_batch_key(from.batch_key);
  for (const auto& group : from.groups)
    to_wire(group, to->add_groups());
  to_wire(from.sampling, to->mutable_sampling());
  to->set_seed(from.seed);
  if (from.required_weight_version)
    to->set_required_weight_version(*from.required_weight_version);
  to->set_policy(from.policy);
  if (from.chunk_tokens)
    to->set_chunk_tokens(*from.chunk_tokens);
  to->set_force_migration(from.force_migration);
  to->set_echo_prompts(from.echo_prompts);
  if (from.routed_experts_from)
    to->set_routed_experts_from(*from.routed_experts_from);
}

void to_wire(const submit_batch& from, v1::Envelope& envelope) {
  to_wire(from, envelope.mutable_submit_batch());
}

void to_wire(const cancel_batch& from, v1::Envelope& envelope) {
  envelope.mutable_cancel_batch()->set_batch_key(from.batch_key);
}

void to_wire(const ack_results& from, v1::Envelope& envelope) {
  envelope.mutable_ack_results()->set_batch_key(from.batch_key);
  envelope.mutable_ack_results()->set_sequence(from.sequence);
}

void to_wire(const resume_results& from, v1::Envelope& envelope) {
  envelope.mutable_resume_results()->set_batch_key(from.batch_key);
  envelope.mutable_resume_results()->set_after_sequence(from.after_sequence);
}

void to_wire(const get_status&, v1::Envelope& envelope) {
  envelope.mutable_get_status();
}

} // namespace

result<request_envelope> decode_request(std::span<const std::byte> bytes) {
  if (bytes.size() <= limits.message_bytes)
    if (const auto ok = bound_parts(bytes); !ok)
      return fail(ok);
  auto envelope = parse_envelope(bytes);
  if (!envelope)
    return fail(envelope);
  if (envelope->request_id() == 0)
    return fail(errc::frame_malformed, "a request without a request_id: number them from 1");
  auto body = request_of(*envelope);
  if (!body)
    return fail(body);
  if (const auto ok = validate_body(*body); !ok)
    return fail(ok);
  return request_envelope{envelope->request_id(), std::move(*body)};
}

std::uint64_t request_id_of(std::span<const std::byte> bytes) noexcept {
  if (bytes.size() > limits.message_bytes)
    return 0;
  CodedInputStream in{reinterpret_cast<const std::uint8_t*>(bytes.data()),
                      static_cast<int>(bytes.size())};
  constexpr auto wanted = static_cast<std::uint32_t>(v1::Envelope::kRequestIdFieldNumber) << 3;
  std::uint64_t id = 0; // the last one counts, as for the parser
  while (const auto tag = in.ReadTag())
    if (tag == wanted ? !in.ReadVarint64(&id) : !WireFormatLite::SkipField(&in, tag))
      break;
  return id;
}

std::string stored(const submit_batch& batch) {
  v1::SubmitBatch message;
  to_wire(batch, &message);
  return message.SerializeAsString();
}

result<submit_batch> stored_batch(std::span<const std::byte> bytes) {
  v1::SubmitBatch message;
  if (!std::in_range<int>(bytes.size())
      || !message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())))
    return fail(errc::frame_malformed,
                std::to_string(bytes.size()) + " bytes are no rollcast.v1.SubmitBatch");
  return from_wire(message);
}

std::string encode(std::uint64_t request_id, const request& body) {
  auto envelope = make_envelope(request_id);
  std::visit([&](const auto& x) { to_wire(x, envelope); }, body);
  return envelope.SerializeAsString();
}

} // namespace rollcast::wire
