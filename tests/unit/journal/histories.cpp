#include "tests/unit/journal/histories.hpp"

#include "cluster/wire/batch_hash.hpp"

#include <bit>
#include <chrono>
#include <sstream>
#include <thread>
#include <utility>

namespace rollcast::journal {

record history::next() {
  auto what = draw();
  ++written_;
  apply(known_, what, written_);
  return what;
}

/// Random bits, NaN and infinities too: they must come back as they were.
float history::real() {
  return std::bit_cast<float>(static_cast<std::uint32_t>(rng_.next()));
}

record history::draw() {
  if (known_.batches.empty() || (known_.batches.size() < 6 && rng_.chance(4)))
    return submit();
  if (rng_.chance(4))
    return cluster_news();
  return news_of(known_.batches[rng_.below(known_.batches.size())]);
}

record history::submit() {
  auto spec = std::make_shared<wire::submit_batch>();
  spec->batch_key = "key " + std::to_string(known_.next_batch);
  const auto groups = 1 + rng_.below(3);
  std::uint64_t size = 0;
  for (std::uint64_t g = 0; g < groups; ++g) {
    wire::prompt_group group;
    group.id = "g" + std::to_string(g);
    group.group_size = static_cast<std::uint32_t>(1 + rng_.below(4));
    group.prompt_token_ids = {static_cast<token_id>(rng_.below(1'000)), 7};
    if (rng_.chance(30))
      group.seed = rng_.next();
    if (rng_.chance(30))
      group.sampling = wire::sampling_params{
        .temperature = 0.5f, .max_new_tokens = 9, .stop_token_ids = {3, 4}, .ignore_eos = true};
    size += group.group_size;
    spec->groups.push_back(std::move(group));
  }
  spec->sampling.max_new_tokens = 100;
  spec->seed = rng_.next();
  if (rng_.chance(50))
    spec->required_weight_version = rng_.next();
  if (rng_.chance(50))
    spec->chunk_tokens = 16;
  spec->policy = rng_.chance(50) ? "context" : "";
  if (rng_.chance(50))
    spec->routed_experts_from = static_cast<std::uint32_t>(rng_.below(20));
  return batch_submitted{{known_.next_batch},
                         spec,
                         known_.next_response,
                         known_.next_group,
                         rng_.chance(50) ? "alice" : ""};
}

record history::edge(batch_image& batch, std::uint64_t ordinal) {
  const auto& r = batch.responses[ordinal];
  chunk_edge out{.id = batch.id,
                 .ordinal = ordinal,
                 .position = static_cast<std::uint32_t>(r.tokens.size()),
                 .weight_version = batch.started->weight_version + rng_.below(3),
                 .tokens = {},
                 .logprobs = {},
                 .kept_masses = {}};
  const bool masses = rng_.chance(50);
  const auto tokens = rng_.below(rng_.chance(5) ? 4'000 : 40);
  for (std::uint64_t i = 0; i < tokens; ++i) {
    out.tokens.push_back(static_cast<token_id>(rng_.below(1u << 31)));
    out.logprobs.push_back(real());
    if (masses)
      out.kept_masses.push_back(real());
  }
  if (const auto from = batch.spec.routed_experts_from) {
    const auto before = static_cast<std::uint32_t>(r.tokens.size());
    const auto positions = // every prompt has two tokens
      routed_positions(*from, 2, before, before + static_cast<std::uint32_t>(tokens)).size();
    out.experts.resize(positions * batch.started->experts.position_bytes());
    for (auto& id : out.experts)
      id = static_cast<std::byte>(rng_.next());
  }
  return out;
}

record history::end(const batch_image& batch) {
  batch_ended out{.id = batch.id, .summary = {}};
  out.summary.responses = batch.size;
  out.summary.wall_s = 0.1 * static_cast<double>(rng_.below(1'000));
  out.summary.numerics_profile = "cpu-f32-v1";
  out.summary.workers.resize(rng_.below(3));
  for (auto& worker : out.summary.workers)
    worker = {.worker = {rng_.next()}, .name = "w", .tokens = rng_.next(), .busy_s = 1.25};
  return out;
}

record history::news_of(batch_image& batch) {
  if (batch.acknowledged > batch.size)
    return batch_forgotten{batch.id};
  if (!batch.started && rng_.chance(80))
    return batch_started{batch.id,
                         rng_.chance(90) ? "cpu-f32-v1" : "",
                         rng_.next() >> 8,
                         {static_cast<std::uint32_t>(rng_.below(3)), 2, 1}};
  std::uint64_t finished = 0;
  for (const auto& r : batch.responses)
    finished += r.sequence != 0 ? 1 : 0;
  if (finished > batch.acknowledged && rng_.chance(20))
    return results_acknowledged{batch.id,
                                batch.acknowledged + 1 + rng_.below(finished - batch.acknowledged)};
  if (finished == batch.size)
    return batch.ended ? record{results_acknowledged{batch.id, batch.size + 1}} : end(batch);
  if (!batch.failure && rng_.chance(5))
    return batch_failed{batch.id, {errc::queue_full, rng_.chance(50) ? "why\nindeed" : "", {}}};
  auto ordinal = rng_.below(batch.size);
  while (batch.responses[ordinal].sequence != 0)
    ordinal = (ordinal + 1) % batch.size;
  if (!batch.started || rng_.chance(20))
    return response_finished{batch.id, ordinal,
                             static_cast<wire::finish_reason>(1 + rng_.below(3))};
  return edge(batch, ordinal);
}

record history::cluster_news() {
  switch (rng_.below(4)) {
    case 0: return epoch_promised{rng_.next() >> rng_.below(64)};
    case 1: return epoch_decided{rng_.next(), {rng_.next(), rng_.next()}};
    case 2: return batch_forgotten{{known_.next_batch + 5}}; // unknown, so it is ignored
    default: break;
  }
  if (rng_.chance(30))
    return cluster_identity{};
  return cluster_identity{.model = "m",
                          .numerics = "cpu-f32-v1",
                          .numerics_hash = {rng_.next(), rng_.next()},
                          .vocabulary = static_cast<std::uint32_t>(rng_.next()),
                          .context_max = 77,
                          .eos_token_ids = std::string("\0\1\2\3", rng_.below(5))};
}

// -- texts ----------------------------------------------------------------------------------------

namespace {

void put(std::ostream& out, const std::vector<float>& values) {
  for (const float x : values)
    out << std::bit_cast<std::uint32_t>(x) << ' ';
  out << '|';
}

void put(std::ostream& out, const batch_image& batch) {
  out << "\nbatch " << batch.id.value << " hash " << to_string(batch.spec_hash) << " spec "
      << to_string(hash_of(batch.spec)) << " key " << batch.spec.batch_key << " responses "
      << batch.first_response << '+' << batch.size << " groups " << batch.first_group << '+'
      << batch.groups << '/' << batch.spec.groups.size() << " acknowledged " << batch.acknowledged
      << " with " << batch.tokens_acknowledged << " of " << batch.owner;
  if (batch.failure)
    out << " failed " << to_string(batch.failure->code) << ' ' << batch.failure->detail;
  if (batch.started)
    out << " started " << batch.started->id.value << ' ' << batch.started->numerics_profile << ' '
        << batch.started->weight_version << ' ' << batch.started->experts.layers << '/'
        << batch.started->experts.per_token << '/' << batch.started->experts.id_bytes;
  if (batch.ended) {
    const auto& s = batch.ended->summary;
    out << " ended " << batch.ended->id.value << ' ' << s.responses << ' '
        << std::bit_cast<std::uint64_t>(s.wall_s) << ' ' << s.numerics_profile;
    for (const auto& w : s.workers)
      out << " worker " << w.worker.value << ' ' << w.name << ' ' << w.tokens << ' ' << w.busy_s;
  }
  for (const auto& r : batch.responses) {
    out << "\n  " << r.sequence << ' ' << to_string(r.reason) << ' ';
    for (const auto& v : r.versions)
      out << 'v' << v.version << '@' << v.start << ' ';
    for (const auto t : r.tokens)
      out << t << ' ';
    out << '|';
    put(out, r.logprobs);
    put(out, r.kept_masses);
    for (const auto id : r.experts)
      out << std::to_integer<int>(id) << ' ';
  }
}

} // namespace

std::string text_of(const image& all) {
  std::ostringstream out;
  out << all.next_batch << ' ' << all.next_group << ' ' << all.next_response << " promised "
      << all.epoch_promised;
  if (all.identity)
    out << "\nidentity " << all.identity->model << ' ' << all.identity->numerics << ' '
        << to_string(all.identity->numerics_hash) << ' ' << all.identity->vocabulary << ' '
        << all.identity->context_max << ' ' << all.identity->eos_token_ids.size()
        << all.identity->eos_token_ids;
  if (all.weights)
    out << "\nepoch " << all.weights->epoch << ' ' << to_string(all.weights->weights);
  for (const auto& batch : all.batches)
    put(out, batch);
  return out.str();
}

// -- small things ---------------------------------------------------------------------------------

bool settled(const journal& keeper) {
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds{60};
  while (keeper.durable() < keeper.written()) {
    if (std::chrono::steady_clock::now() > until)
      return false;
    std::this_thread::sleep_for(std::chrono::milliseconds{1});
  }
  return true;
}

std::shared_ptr<wire::submit_batch> small_spec(const std::string& key, std::uint32_t responses) {
  auto spec = std::make_shared<wire::submit_batch>();
  spec->batch_key = key;
  spec->groups.push_back({.id = "g",
                          .prompt_token_ids = {1, 2, 3},
                          .group_size = responses,
                          .seed = {},
                          .sampling = {}});
  spec->sampling.max_new_tokens = 64;
  return spec;
}

chunk_edge edge_of(batch_id id, std::uint64_t ordinal, std::uint32_t position, std::size_t tokens) {
  chunk_edge edge{.id = id,
                  .ordinal = ordinal,
                  .position = position,
                  .weight_version = 1,
                  .tokens = {},
                  .logprobs = {},
                  .kept_masses = std::vector<float>(tokens, 0.75f)};
  for (std::size_t i = 0; i < tokens; ++i) {
    edge.tokens.push_back(static_cast<token_id>(position + i));
    edge.logprobs.push_back(-0.5f * static_cast<float>(i));
  }
  return edge;
}

} // namespace rollcast::journal
