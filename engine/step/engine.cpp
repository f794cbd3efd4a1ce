#include "engine/step/engine.hpp"

#include "engine/base/check.hpp"
#include "engine/step/engine_state.hpp"
#include "engine/step/validate.hpp"

#include <algorithm>
#include <string>
#include <utility>

namespace rollcast {

namespace {

/// Blocks that a response may borrow for the branches of a draft, for one step.
constexpr std::uint32_t borrowed_blocks_max = 16;

} // namespace

engine::state::state(std::unique_ptr<backend> given, engine_limits bounds)
  : device(std::move(given)), limits(bounds), pool_(device->shape().kv_blocks) {
  const device_shape& shape = device->shape();
  if (limits.context_max == 0)
    limits.context_max = shape.positions_max;
  limits.context_max = std::min(limits.context_max, shape.positions_max);
  limits.rows_max = std::clamp<std::uint32_t>(limits.rows_max, 1, shape.rows_max);
  limits.batch_max =
    std::clamp<std::uint32_t>(limits.batch_max, 1, std::min(limits.rows_max, shape.logit_rows_max));
  row_tokens_.reserve(limits.rows_max);
  row_places_.reserve(limits.rows_max);
  row_sequences_.reserve(limits.rows_max);
  logit_rows_.reserve(limits.rows_max);
  choosers_.reserve(limits.batch_max);
  noise_.reserve(shape.logit_rows_max);
  chosen_.reserve(shape.logit_rows_max);
  trees_.reserve(limits.batch_max);
  paths_.reserve(limits.batch_max);
  fed_.reserve(shape.logit_rows_max);
  parents_.reserve(shape.logit_rows_max);
  path_nodes_.reserve(shape.logit_rows_max);
  seats_.reserve(limits.batch_max);
  outcomes_.reserve(limits.batch_max);
  standing_.reserve(limits.rows_max);
  seen_.reserve(limits.rows_max);
  running.reserve(limits.batch_max);
  stepping_.reserve(limits.batch_max);
  reports_.reserve(limits.batch_max);
  ended_.reserve(limits.batch_max);
}

std::uint32_t engine::state::blocks_for(std::uint32_t tokens) const noexcept {
  const std::uint32_t block = device->shape().block_tokens;
  return (tokens + block - 1) / block;
}

std::unique_ptr<sequence> engine::state::make_sequence(chunk_request&& request) const {
  auto seq = std::make_unique<sequence>();
  seq->id = request.response;
  seq->prompt_tokens = request.prompt_tokens;
  seq->sampling = std::move(request.sampling);
  seq->reserve = request.reserve;
  seq->tokens = std::move(request.tokens);
  seq->chunk_begin = seq->size();
  // 64-bit sums: a limit near 2^32 must not wrap around.
  seq->length_max = static_cast<std::uint32_t>(std::min<std::uint64_t>(
    limits.context_max, std::uint64_t{seq->prompt_tokens} + seq->sampling.max_new_tokens));
  seq->chunk_end = static_cast<std::uint32_t>(
    std::min<std::uint64_t>(seq->length_max, std::uint64_t{seq->size()} + request.generate_max));
  seq->stop_ids = seq->sampling.stop_token_ids;
  if (!seq->sampling.ignore_eos)
    for (const token_id id : device->eos_token_ids())
      seq->stop_ids.push_back(id);
  // What was generated already has been computed before, here or elsewhere.
  seq->first_prefill = seq->generated() > 0 ? seq->size() - 1 : 0;
  seq->tokens.reserve(seq->chunk_end);
  seq->blocks.reserve(blocks_for(seq->chunk_end) + borrowed_blocks_max);
  if (speculator)
    seq->draft.reserve(device->shape().logit_rows_max);
  seq->logprobs.reserve(seq->chunk_end - seq->chunk_begin);
  seq->kept_masses.reserve(seq->chunk_end - seq->chunk_begin);
  if (request.experts_from) {
    const auto range = routed_positions(*request.experts_from, seq->prompt_tokens, seq->generated(),
                                        seq->chunk_end - seq->prompt_tokens);
    seq->keeps_experts = true;
    seq->experts_begin = seq->experts_end = range.begin;
    seq->experts.reserve(range.size() * device->shape().experts.position_bytes());
  }
  return seq;
}

/// Takes over the ids of experts that a chunk of the same beginning has left.
void engine::state::take_ids(sequence& fresh, const sequence& old) const {
  fresh.experts_end = std::clamp(old.cached, old.experts_begin, old.experts_end);
  const auto bytes =
    (fresh.experts_end - fresh.experts_begin) * device->shape().experts.position_bytes();
  fresh.experts.assign(old.experts.begin(),
                       old.experts.begin() + static_cast<std::ptrdiff_t>(bytes));
}

void engine::state::adopt_parked(sequence& fresh) {
  const auto it = sequences_.find(fresh.id);
  if (it == sequences_.end())
    return;
  sequence& old = *it->second;
  const bool usable = old.state == sequence_state::parked && old.cached < fresh.size()
                      && hash_of(std::span{fresh.tokens}.first(old.cached)) == old.prefix;
  // A chunk that was cut before its first token left KV, and ids of experts that nobody was told.
  const bool same_ids = old.keeps_experts && old.experts_begin == fresh.experts_begin;
  const bool has_ids = !fresh.keeps_experts || same_ids || old.cached <= fresh.experts_begin;
  if (usable && has_ids) {
    fresh.blocks.insert(fresh.blocks.end(), old.blocks.begin(), old.blocks.end());
    old.blocks.clear();
    fresh.cached = old.cached;
    if (fresh.keeps_experts && same_ids) // they are believed as far as the KV is
      take_ids(fresh, old);
  } else if (speculator) {
    // What it has seen is of other tokens, or comes again.
    speculator->gone(fresh.id, fresh.tokens);
  }
  if (usable && !has_ids)
    fresh.first_prefill = std::max(fresh.first_prefill, old.cached);
  erase(fresh.id);
}

result<void> engine::state::admit(chunk_request request) {
  const device_shape& shape = device->shape();
  if (auto ok = validate(request.sampling, shape.vocabulary); !ok)
    return ok;
  if (auto ok = validate_tokens(request.tokens, shape.vocabulary, limits.context_max); !ok)
    return ok;
  if (request.prompt_tokens == 0 || request.prompt_tokens > request.tokens.size())
    return fail(errc::bad_prompt, "prompt of " + std::to_string(request.prompt_tokens) + " in "
                                    + std::to_string(request.tokens.size()) + " tokens");
  if (request.experts_from && shape.experts.layers == 0)
    return fail(errc::bad_config, "ids of experts are asked for, and the model has no experts");
  const auto generated = request.tokens.size() - request.prompt_tokens;
  if (request.generate_max == 0 || generated >= request.sampling.max_new_tokens)
    return fail(errc::bad_sampling, "nothing left to generate: " + std::to_string(generated)
                                      + " of " + std::to_string(request.sampling.max_new_tokens)
                                      + " tokens are there");
  auto seq = make_sequence(std::move(request));
  adopt_parked(*seq);
  // The last token of a chunk is chosen but never fed, so its position needs no KV.
  const std::uint32_t need = blocks_for(seq->chunk_end - 1);
  if (need > pool_.total() || (seq->reserve && need > seq->blocks.size() + pool_.free())) {
    const auto held = seq->blocks.size();
    pool_.give_back(seq->blocks);
    if (speculator)
      speculator->gone(seq->id, seq->tokens);
    return fail(errc::out_of_kv_blocks,
                "response " + std::to_string(seq->id.value) + " needs " + std::to_string(need)
                  + " KV blocks, holds " + std::to_string(held) + ", free "
                  + std::to_string(pool_.free() - held) + " of " + std::to_string(pool_.total()));
  }
  if (seq->reserve && need > seq->blocks.size())
    ROLLCAST_CHECK(pool_.take(need - static_cast<std::uint32_t>(seq->blocks.size()), seq->blocks));
  seq->arrival = arrivals_++;
  waiting.push_back(seq.get());
  sequences_.emplace(seq->id, std::move(seq));
  return {};
}

bool engine::state::release(response_id response) {
  if (const auto it = sequences_.find(response); speculator && it != sequences_.end())
    speculator->gone(response, it->second->tokens);
  return erase(response);
}

void engine::state::speculate(std::shared_ptr<drafter> by) {
  speculator = std::move(by);
  const auto wish = speculator ? speculator->wants_states() : state_wish{};
  wants_states_ = !wish.empty();
  ROLLCAST_CHECK(device->keep_states(wish));
  if (speculator)
    speculator->use_target(device->weights());
}

/// Forgets a response that may go on here.
bool engine::state::erase(response_id response) {
  const auto it = sequences_.find(response);
  if (it == sequences_.end())
    return false;
  sequence* seq = it->second.get();
  pool_.give_back(seq->blocks);
  std::erase(running, seq);
  std::erase(waiting, seq);
  sequences_.erase(it);
  return true;
}

kv_usage engine::state::kv() const noexcept {
  kv_usage usage{pool_.total(), pool_.free(), 0, 0};
  for (const auto& [id, seq] : sequences_) {
    auto& held = seq->state == sequence_state::parked ? usage.parked : usage.running;
    held += static_cast<std::uint32_t>(seq->blocks.size());
  }
  return usage;
}

result<void> engine::state::use_weights(std::shared_ptr<const device_weights> weights) {
  if (!running.empty() || !waiting.empty())
    return fail(errc::bad_config,
                "weights " + to_string(weights->hash()) + " are not taken into use while "
                  + std::to_string(running.size()) + " responses run and "
                  + std::to_string(waiting.size()) + " wait; end or release them first");
  while (evict_parked()) {
  }
  device->use_weights(std::move(weights));
  if (speculator)
    speculator->use_target(device->weights());
  return {};
}

// -- the public class ---------------------------------------------------------

engine::engine(std::unique_ptr<backend> device, engine_limits limits)
  : state_(std::make_unique<state>(std::move(device), limits)) {}
engine::~engine() = default;
engine::engine(engine&&) noexcept = default;
engine& engine::operator=(engine&&) noexcept = default;

void engine::speculate(std::shared_ptr<drafter> by) {
  state_->speculate(std::move(by));
}
result<void> engine::admit(chunk_request request) {
  return state_->admit(std::move(request));
}
std::span<const chunk_report> engine::step() {
  return state_->step();
}
std::span<const chunk_report> engine::cut() {
  return state_->cut();
}
std::span<const chunk_report> engine::cut(response_id response) {
  return state_->cut(response);
}
bool engine::has_work() const noexcept {
  return !state_->running.empty() || !state_->waiting.empty();
}
bool engine::release(response_id response) {
  return state_->release(response);
}
result<kv_manifest> engine::export_kv(response_id response, kv_bytes& image) const {
  return state_->export_kv(response, image);
}
result<void> engine::import_kv(const kv_manifest& manifest, std::span<const std::byte> image) {
  return state_->import_kv(manifest, image);
}
result<void> engine::use_weights(std::shared_ptr<const device_weights> weights) {
  return state_->use_weights(std::move(weights));
}
result<void> engine::score(std::span<const score_request> sequences,
                           std::vector<std::vector<float>>& logprobs,
                           const std::shared_ptr<const device_weights>& at) {
  if (!at)
    return state_->score(sequences, logprobs);
  auto used = state_->device->weights();
  state_->device->use_weights(at);
  auto scored = state_->score(sequences, logprobs);
  state_->device->use_weights(std::move(used));
  return scored;
}
result<void> engine::score(std::span<const token_id> tokens, std::uint32_t prompt_tokens,
                           float temperature, std::vector<float>& logprobs,
                           const std::shared_ptr<const device_weights>& at) {
  const score_request one{tokens, prompt_tokens, temperature};
  std::vector<std::vector<float>> rows(1);
  rows[0].swap(logprobs);
  auto scored = score(std::span{&one, 1}, rows, at);
  logprobs.swap(rows[0]);
  return scored;
}
bool engine::parked(response_id response) const noexcept {
  return state_->is_parked(response);
}
std::uint32_t engine::running() const noexcept {
  return static_cast<std::uint32_t>(state_->running.size());
}
std::uint32_t engine::waiting() const noexcept {
  return static_cast<std::uint32_t>(state_->waiting.size());
}
kv_usage engine::kv() const noexcept {
  return state_->kv();
}
const engine_stats& engine::stats() const noexcept {
  return state_->stats;
}
const engine_limits& engine::limits() const noexcept {
  return state_->limits;
}
const backend& engine::device() const noexcept {
  return *state_->device;
}

} // namespace rollcast
