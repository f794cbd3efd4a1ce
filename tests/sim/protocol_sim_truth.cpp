#include "tests/sim/protocol_sim_truth.hpp"

#include "cluster/batch/admission.hpp"
#include "cluster/batch/batch_book.hpp"
#include "engine/base/hash.hpp"

#include <algorithm>
#include <utility>
#include <vector>

namespace rollcast::sim {
namespace {

std::string name_of(const wire::response_ready& r) {
  return "batch '" + r.batch_key + "', group " + std::to_string(r.group) + ", index "
         + std::to_string(r.index) + ": ";
}

} // namespace

std::string sim_truth::serves(std::uint64_t epoch, const epoch_values& values) {
  const auto [it, fresh] = epochs_.try_emplace(epoch);
  if (fresh)
    it->second.values = values;
  return it->second.values == values ? ""
                                     : "epoch " + std::to_string(epoch) + " names two contents";
}

const epoch_values* sim_truth::values(std::uint64_t epoch) const {
  const auto it = epochs_.find(epoch);
  return it == epochs_.end() ? nullptr : &it->second.values;
}

engine* sim_truth::device_of(std::uint64_t epoch) {
  const auto it = epochs_.find(epoch);
  if (it == epochs_.end())
    return nullptr;
  auto& device = it->second.device;
  if (!device) {
    test::fake_device how;
    how.weights = it->second.values[0] ^ it->second.values[1];
    how.mean_length = 24;
    how.kv_blocks = 16;
    device = std::make_unique<engine>(std::make_unique<test::fake_backend>(how), engine_limits{});
  }
  return device.get();
}

std::string sim_truth::check_span(const wire::prompt_group& group,
                                  const wire::sampling_params& sampling,
                                  const wire::response_ready& r, const wire::weight_span& span,
                                  std::optional<std::uint32_t> experts_from, std::string& experts) {
  auto* device = device_of(span.version);
  if (device == nullptr)
    return "tokens of epoch " + std::to_string(span.version) + ", which nobody ever served";
  chunk_request request;
  request.response = {++last_response_};
  request.tokens = group.prompt_token_ids;
  request.tokens.insert(request.tokens.end(), r.token_ids.begin(),
                        r.token_ids.begin() + span.start);
  request.prompt_tokens = static_cast<std::uint32_t>(group.prompt_token_ids.size());
  request.sampling = to_engine(sampling, r.response_seed);
  request.generate_max = span.end - span.start;
  request.experts_from = experts_from;
  if (auto admitted = device->admit(std::move(request)); !admitted)
    return "the oracle refuses it: " + admitted.error().detail;
  std::string wrong;
  while (device->has_work())
    for (const auto& made : device->step()) {
      if (!std::equal(made.tokens.begin(), made.tokens.end(), r.token_ids.begin() + span.start,
                      r.token_ids.begin() + span.end)
          || !std::equal(made.logprobs.begin(), made.logprobs.end(),
                         r.logprobs.begin() + span.start, r.logprobs.begin() + span.end))
        wrong = "tokens " + std::to_string(span.start) + " to " + std::to_string(span.end)
                + " are not those of epoch " + std::to_string(span.version);
      experts.append(reinterpret_cast<const char*>(made.experts.data()), made.experts.size());
      const bool last = span.end == r.token_ids.size();
      if (r.reason != wire::finish_reason::cancelled
          && (made.why == chunk_end::stop) != (last && r.reason == wire::finish_reason::stop))
        wrong = "it ends by " + std::string{to_string(r.reason)} + ", which is not what it says";
    }
  device->release({last_response_});
  return wrong;
}

std::string sim_truth::check(const wire::submit_batch& batch, const wire::response_ready& r) {
  if (r.group >= batch.groups.size() || r.index >= batch.groups[r.group].group_size)
    return name_of(r) + "there is no such response";
  const auto& group = batch.groups[r.group];
  const auto& sampling = group.sampling ? *group.sampling : batch.sampling;
  if (r.response_seed
      != (group.seed ? response_seed(*group.seed, 0, r.index)
                     : response_seed(batch.seed, r.group, r.index)))
    return name_of(r) + "another seed than its place gives it";
  if (r.logprobs.size() != r.token_ids.size())
    return name_of(r) + "another number of log-probabilities than tokens";
  const auto most = tokens_max(sampling, group.prompt_token_ids.size(), 2'048);
  if (r.reason == wire::finish_reason::length && r.token_ids.size() != most)
    return name_of(r) + "it ends by length after " + std::to_string(r.token_ids.size())
           + " tokens of " + std::to_string(most);
  std::uint32_t at = 0;
  std::string experts;
  for (const auto& span : r.weight_versions) {
    if (span.start != at || span.end <= span.start || span.end > r.token_ids.size())
      return name_of(r) + "its spans of versions have a hole";
    at = span.end;
    if (batch.required_weight_version && span.version != *batch.required_weight_version)
      return name_of(r) + "made by version " + std::to_string(span.version) + ", required is "
             + std::to_string(*batch.required_weight_version);
    if (auto wrong = check_span(group, sampling, r, span, batch.routed_experts_from, experts);
        !wrong.empty())
      return name_of(r) + wrong;
  }
  if (r.experts.has_value() != batch.routed_experts_from.has_value())
    return name_of(r) + "ids of experts that were not asked for, or none";
  if (r.experts && r.experts->ids != experts)
    return name_of(r) + std::to_string(r.experts->ids.size())
           + " bytes of ids of experts are not those of single responses, "
           + std::to_string(experts.size());
  return at == r.token_ids.size() ? "" : name_of(r) + "tokens without a version";
}

std::string sim_truth::check(const wire::score& asked, const wire::scored& r) {
  auto* device = device_of(r.weight_version);
  if (device == nullptr || r.rows.size() != asked.sequences.size())
    return "scores of epoch " + std::to_string(r.weight_version) + ", "
           + std::to_string(r.rows.size()) + " rows of " + std::to_string(asked.sequences.size());
  for (std::size_t i = 0; i < r.rows.size(); ++i) {
    const auto& s = asked.sequences[i];
    std::vector<float> truth;
    if (!device->score(s.token_ids, s.prompt_tokens, s.temperature, truth)
        || truth != r.rows[i].logprobs)
      return "scores of sequence " + std::to_string(i) + " are not those of epoch "
             + std::to_string(r.weight_version);
  }
  return {};
}

} // namespace rollcast::sim
