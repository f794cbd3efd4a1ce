#include "cluster/wire/codec.hpp"
#include "cluster/wire/codec_weights.hpp"
#include "cluster/wire/envelope.hpp"
#include "engine/base/check.hpp"

#include <optional>
#include <utility>

namespace rollcast::wire {
namespace {

// -- to the wire ----------------------------------------------------------------------------------

void to_wire(const batch_accepted& from, v1::Envelope& envelope) {
  auto* to = envelope.mutable_batch_accepted();
  to->set_batch_key(from.batch_key);
  to->set_responses(from.responses);
  to->set_first_sequence(from.first_sequence);
  to->set_numerics_profile(from.numerics_profile);
  if (from.weight_version)
    to->set_weight_version(*from.weight_version);
}

void to_wire(const request_done&, v1::Envelope& envelope) {
  envelope.mutable_ok();
}

void to_wire(const request_failed& from, v1::Envelope& envelope) {
  auto* to = envelope.mutable_error();
  const auto code = to_string(from.code);
  to->set_code(code.data(), code.size());
  to->set_message(from.message);
  to->set_detail(from.detail);
  to->set_batch_key(from.batch_key);
}

void to_wire(const worker_status& from, v1::WorkerStatus* to) {
  to->set_worker(from.worker.value);
  to->set_name(from.name);
  to->set_state(from.state);
  to->set_pid(from.pid);
  to->set_endpoint(from.endpoint);
  to->set_running(from.running);
  to->set_waiting(from.waiting);
  to->set_kv_blocks_total(from.kv_blocks_total);
  to->set_kv_blocks_used(from.kv_blocks_used);
  to->set_kv_blocks_parked(from.kv_blocks_parked);
  to->set_kv_tokens_spilled(from.kv_tokens_spilled);
  to->set_generated_tokens(from.generated_tokens);
  to->set_steps(from.steps);
  to->set_busy_s(from.busy_s);
  to->set_epoch(from.epoch);
}

void to_wire(const batch_status& from, v1::BatchStatus* to) {
  to->set_batch_key(from.batch_key);
  to->set_policy(from.policy);
  to->set_responses(from.responses);
  to->set_finished(from.finished);
  to->set_running(from.running);
  to->set_waiting(from.waiting);
  to->set_generated_tokens(from.generated_tokens);
}

void to_wire(const status_report& from, v1::Envelope& envelope) {
  auto* to = envelope.mutable_status();
  to->set_numerics_profile(from.numerics_profile);
  to->set_weight_version(from.weight_version);
  to->set_model(from.model);
  for (const auto& worker : from.workers)
    to_wire(worker, to->add_workers());
  for (const auto& batch : from.batches)
    to_wire(batch, to->add_batches());
  to->set_live_groups(from.live_groups);
  to->set_uptime_s(from.uptime_s);
  wire::to_wire(from.weights, to->mutable_weights());
}

void to_wire(const response_ready& from, v1::Envelope& envelope) {
  ROLLCAST_CHECK(from.logprobs.size() == from.token_ids.size());
  ROLLCAST_CHECK(from.kept_mass.empty() || from.kept_mass.size() == from.token_ids.size());
  auto* to = envelope.mutable_result();
  to->set_batch_key(from.batch_key);
  to->set_sequence(from.sequence);
  to->set_group(from.group);
  to->set_index(from.index);
  to->set_id(from.id);
  assign(to->mutable_prompt_token_ids(), from.prompt_token_ids);
  assign(to->mutable_token_ids(), from.token_ids);
  assign(to->mutable_logprobs(), from.logprobs);
  assign(to->mutable_kept_mass(), from.kept_mass);
  to->set_finish_reason(static_cast<v1::FinishReason>(from.reason));
  for (const auto& span : from.weight_versions) {
    auto* added = to->add_weight_versions();
    added->set_version(span.version);
    added->set_start(span.start);
    added->set_end(span.end);
  }
  to->set_response_seed(from.response_seed);
  to->set_numerics_profile(from.numerics_profile);
  if (!from.experts)
    return;
  auto* experts = to->mutable_routed_experts();
  experts->set_start(from.experts->start);
  experts->set_layers(from.experts->layout.layers);
  experts->set_per_token(from.experts->layout.per_token);
  experts->set_id_bytes(from.experts->layout.id_bytes);
  experts->set_ids(from.experts->ids);
}

void to_wire(const worker_summary& from, v1::WorkerSummary* to) {
  to->set_worker(from.worker.value);
  to->set_name(from.name);
  to->set_tokens(from.tokens);
  to->set_tokens_per_s(from.tokens_per_s);
  to->set_busy_s(from.busy_s);
  to->set_idle_fraction(from.idle_fraction);
  to->set_chunks(from.chunks);
  to->set_migrations(from.migrations);
  to->set_migrated_bytes(from.migrated_bytes);
  to->set_recomputed_tokens(from.recomputed_tokens);
  to->set_preemptions(from.preemptions);
  to->set_draft_tokens(from.draft_tokens);
  to->set_accepted_tokens(from.accepted_tokens);
  to->set_mean_acceptance_length(from.mean_acceptance_length);
}

void to_wire(const batch_summary& from, v1::Summary* to) {
  to->set_responses(from.responses);
  to->set_tokens(from.tokens);
  to->set_wall_s(from.wall_s);
  to->set_tokens_per_s(from.tokens_per_s);
  to->set_makespan_s(from.makespan_s);
  to->set_tail_s(from.tail_s);
  to->set_worker_idle_fraction(from.worker_idle_fraction);
  to->set_chunks(from.chunks);
  to->set_migrations(from.migrations);
  to->set_migrated_bytes(from.migrated_bytes);
  to->set_recomputed_tokens(from.recomputed_tokens);
  to->set_preemptions(from.preemptions);
  to->set_draft_tokens(from.draft_tokens);
  to->set_accepted_tokens(from.accepted_tokens);
  to->set_mean_acceptance_length(from.mean_acceptance_length);
  to->set_numerics_profile(from.numerics_profile);
  to->set_policy(from.policy);
  to->set_speculate(from.speculate);
  for (const auto& worker : from.workers)
    to_wire(worker, to->add_workers());
}

void to_wire(const batch_done& from, v1::Envelope& envelope) {
  auto* to = envelope.mutable_batch_done();
  to->set_batch_key(from.batch_key);
  to->set_sequence(from.sequence);
  to_wire(from.summary, to->mutable_summary());
}

// -- from the wire --------------------------------------------------------------------------------

batch_accepted from_wire(const v1::BatchAccepted& from) {
  return {.batch_key = from.batch_key(),
          .responses = from.responses(),
          .first_sequence = from.first_sequence(),
          .numerics_profile = from.numerics_profile(),
          .weight_version =
            from.has_weight_version() ? std::optional{from.weight_version()} : std::nullopt};
}

std::optional<errc> errc_of(std::string_view name) {
  for (int code = 0; code < 256; ++code)
    if (to_string(static_cast<errc>(code)) == name)
      return static_cast<errc>(code);
  return std::nullopt;
}

request_failed from_wire(const v1::Error& from) {
  const auto code = errc_of(from.code());
  return {.code = code.value_or(errc::unimplemented),
          .message = code ? from.message() : from.code() + ": " + from.message(),
          .detail = from.detail(),
          .batch_key = from.batch_key()};
}

worker_status from_wire(const v1::WorkerStatus& from) {
  return {.worker = worker_id{from.worker()},
          .name = from.name(),
          .state = from.state(),
          .pid = from.pid(),
          .endpoint = from.endpoint(),
          .running = from.running(),
          .waiting = from.waiting(),
          .kv_blocks_total = from.kv_blocks_total(),
          .kv_blocks_used = from.kv_blocks_used(),
          .kv_blocks_parked = from.kv_blocks_parked(),
          .kv_tokens_spilled = from.kv_tokens_spilled(),
          .generated_tokens = from.generated_tokens(),
          .steps = from.steps(),
          .busy_s = from.busy_s(),
          .epoch = from.epoch()};
}

batch_status from_wire(const v1::BatchStatus& from) {
  return {.batch_key = from.batch_key(),
          .policy = from.policy(),
          .responses = from.responses(),
          .finished = from.finished(),
          .running = from.running(),
          .waiting = from.waiting(),
          .generated_tokens = from.generated_tokens()};
}

status_report from_wire(const v1::Status& from) {
  status_report status{.numerics_profile = from.numerics_profile(),
                       .weight_version = from.weight_version(),
                       .model = from.model(),
                       .workers = {},
                       .batches = {},
                       .live_groups = from.live_groups(),
                       .uptime_s = from.uptime_s(),
                       .weights = wire::from_wire(from.weights())};
  for (const auto& worker : from.workers())
    status.workers.push_back(from_wire(worker));
  for (const auto& batch : from.batches())
    status.batches.push_back(from_wire(batch));
  return status;
}

expert_layout layout_of(const v1::RoutedExperts& from) {
  return {from.layers(), from.per_token(), from.id_bytes()};
}

/// Says why a result contradicts itself, or nothing.
std::string contradiction_of(const v1::Result& from) {
  const auto tokens = from.token_ids_size();
  const auto sizes = std::to_string(from.logprobs_size()) + " logprobs and "
                     + std::to_string(from.kept_mass_size()) + " kept_mass for "
                     + std::to_string(tokens) + " tokens";
  if (from.logprobs_size() != tokens)
    return sizes;
  if (from.kept_mass_size() != 0 && from.kept_mass_size() != tokens)
    return sizes;
  if (from.finish_reason() < v1::FINISH_REASON_STOP
      || from.finish_reason() > v1::FINISH_REASON_CANCELLED)
    return "finish_reason " + std::to_string(static_cast<int>(from.finish_reason()));
  std::uint32_t at = 0;
  for (const auto& span : from.weight_versions()) {
    if (span.start() != at || span.end() < at)
      return "weight span " + std::to_string(span.start()) + ".." + std::to_string(span.end())
             + " after token " + std::to_string(at);
    at = span.end();
  }
  if (from.weight_versions_size() != 0 && at != static_cast<std::uint32_t>(tokens))
    return "weight spans up to token " + std::to_string(at) + " of " + std::to_string(tokens);
  const auto& experts = from.routed_experts();
  const auto bytes = layout_of(experts).position_bytes();
  if (experts.id_bytes() > 2 || experts.layers() > limits.expert_layers
      || experts.per_token() > limits.experts_per_token
      || (bytes == 0 ? !experts.ids().empty() : experts.ids().size() % bytes != 0))
    return std::to_string(experts.ids().size()) + " bytes of routed experts, "
           + std::to_string(experts.layers()) + " layers of " + std::to_string(experts.per_token())
           + " ids of " + std::to_string(experts.id_bytes()) + " bytes a position";
  return {};
}

result<event> from_wire(const v1::Result& from) {
  if (const auto why = contradiction_of(from); !why.empty())
    return fail(errc::frame_malformed, "result " + std::to_string(from.sequence()) + " of batch "
                                         + from.batch_key() + " contradicts itself: " + why);
  response_ready response{.batch_key = from.batch_key(),
                          .sequence = from.sequence(),
                          .group = from.group(),
                          .index = from.index(),
                          .id = from.id(),
                          .prompt_token_ids = to_vector<token_id>(from.prompt_token_ids()),
                          .token_ids = to_vector<token_id>(from.token_ids()),
                          .logprobs = to_vector<float>(from.logprobs()),
                          .kept_mass = to_vector<float>(from.kept_mass()),
                          .reason = static_cast<finish_reason>(from.finish_reason()),
                          .weight_versions = {},
                          .response_seed = from.response_seed(),
                          .numerics_profile = from.numerics_profile()};
  for (const auto& span : from.weight_versions())
    response.weight_versions.push_back({span.version(), span.start(), span.end()});
  if (from.has_routed_experts())
    response.experts = routed_experts{
      from.routed_experts().start(), layout_of(from.routed_experts()), from.routed_experts().ids()};
  return response;
}

worker_summary from_wire(const v1::WorkerSummary& from) {
  return {.worker = worker_id{from.worker()},
          .name = from.name(),
          .tokens = from.tokens(),
          .tokens_per_s = from.tokens_per_s(),
          .busy_s = from.busy_s(),
          .idle_fraction = from.idle_fraction(),
          .chunks = from.chunks(),
          .migrations = from.migrations(),
          .migrated_bytes = from.migrated_bytes(),
          .recomputed_tokens = from.recomputed_tokens(),
          .preemptions = from.preemptions(),
          .draft_tokens = from.draft_tokens(),
          .accepted_tokens = from.accepted_tokens(),
          .mean_acceptance_length = from.mean_acceptance_length()};
}

batch_summary from_wire(const v1::Summary& from) {
  batch_summary summary{.responses = from.responses(),
                        .tokens = from.tokens(),
                        .wall_s = from.wall_s(),
                        .tokens_per_s = from.tokens_per_s(),
                        .makespan_s = from.makespan_s(),
                        .tail_s = from.tail_s(),
                        .worker_idle_fraction = from.worker_idle_fraction(),
                        .chunks = from.chunks(),
                        .migrations = from.migrations(),
                        .migrated_bytes = from.migrated_bytes(),
                        .recomputed_tokens = from.recomputed_tokens(),
                        .preemptions = from.preemptions(),
                        .draft_tokens = from.draft_tokens(),
                        .accepted_tokens = from.accepted_tokens(),
                        .mean_acceptance_length = from.mean_acceptance_length(),
                        .numerics_profile = from.numerics_profile(),
                        .policy = from.policy(),
                        .speculate = from.speculate(),
                        .workers = {}};
  for (const auto& worker : from.workers())
    summary.workers.push_back(from_wire(worker));
  return summary;
}

result<event> event_of(const v1::Envelope& envelope) {
  using body = v1::Envelope;
  switch (envelope.body_case()) {
    case body::kBatchAccepted: return from_wire(envelope.batch_accepted());
    case body::kOk: return request_done{};
    case body::kStatus: return from_wire(envelope.status());
    case body::kError: return from_wire(envelope.error());
    case body::kResult: return from_wire(envelope.result());
    case body::kBatchDone:
      return batch_done{envelope.batch_done().batch_key(), envelope.batch_done().sequence(),
                        from_wire(envelope.batch_done().summary())};
    case body::kWeightsBegun: return wire::from_wire(envelope.weights_begun());
    case body::kWeightsServed: return wire::from_wire(envelope.weights_served());
    case body::kScored: return wire::from_wire(envelope.scored());
    default: break;
  }
  const auto field = static_cast<int>(envelope.body_case());
  return fail(errc::frame_malformed,
              field == 0
                ? std::string{"the message has no body that we know"}
                : "body number " + std::to_string(field) + " is nothing that a scheduler says");
}

} // namespace

std::string encode(std::uint64_t request_id, const event& body) {
  auto envelope = make_envelope(request_id);
  std::visit([&](const auto& x) { to_wire(x, envelope); }, body);
  return envelope.SerializeAsString();
}

result<event_envelope> decode_event(std::span<const std::byte> bytes) {
  const auto envelope = parse_envelope(bytes);
  if (!envelope)
    return fail(envelope);
  auto body = event_of(*envelope);
  if (!body)
    return fail(body);
  return event_envelope{envelope->request_id(), std::move(*body)};
}

} // namespace rollcast::wire
