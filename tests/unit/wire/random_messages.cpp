#include "tests/unit/wire/random_messages.hpp"

#include <bit>
#include <cmath>
#include <limits>
#include <variant>

namespace rollcast::wire {
namespace {

std::string random_text(prng& rng, std::size_t least, std::size_t most) {
  std::string text;
  const auto length = least + rng.below(most - least + 1);
  while (text.size() < length)
    text += rng.chance(10) ? "é" : std::string(1, static_cast<char>(' ' + rng.below(95)));
  return text;
}

/// Small numbers and whole words, as both take other paths in a varint.
std::uint64_t random_number(prng& rng) {
  return rng.next() >> rng.below(64);
}

std::uint32_t random_u32(prng& rng) {
  return static_cast<std::uint32_t>(random_number(rng));
}

std::vector<token_id> random_tokens(prng& rng, std::size_t least, std::size_t most) {
  std::vector<token_id> tokens(least + rng.below(most - least + 1));
  for (auto& token : tokens)
    token = static_cast<token_id>(random_u32(rng) & 0x7fffffffu);
  return tokens;
}

float random_float(prng& rng) {
  const auto x = std::bit_cast<float>(static_cast<std::uint32_t>(rng.next()));
  return std::isnan(x) ? -std::numeric_limits<float>::infinity() : x;
}

double random_double(prng& rng) {
  return static_cast<double>(rng.next() >> 11) * 0x1p-20;
}

std::vector<float> random_floats(prng& rng, std::size_t count) {
  std::vector<float> xs(count);
  for (auto& x : xs)
    x = random_float(rng);
  return xs;
}

float random_share(prng& rng) {
  return static_cast<float>(1 + rng.below(1u << 24)) * 0x1p-24f;
}

sampling_params random_sampling(prng& rng) {
  sampling_params s;
  s.temperature = rng.chance(30) ? 0 : 10 * random_share(rng);
  s.top_p = random_share(rng);
  s.top_k = random_u32(rng);
  s.min_p = rng.chance(50) ? 0 : random_share(rng);
  s.max_new_tokens = 1 + static_cast<std::uint32_t>(rng.below(1u << 22));
  s.min_new_tokens = static_cast<std::uint32_t>(rng.below(s.max_new_tokens + std::uint64_t{1}));
  s.stop_token_ids = random_tokens(rng, 0, 4);
  s.ignore_eos = rng.chance(50);
  return s;
}

submit_batch random_batch(prng& rng) {
  submit_batch batch;
  batch.batch_key = random_text(rng, 1, 20);
  batch.groups.resize(1 + rng.below(5));
  for (auto& group : batch.groups) {
    group.id = random_text(rng, 0, 9);
    group.prompt_token_ids = random_tokens(rng, 1, 40);
    group.group_size = 1 + static_cast<std::uint32_t>(rng.below(1000));
    if (rng.chance(50))
      group.seed = rng.next();
    if (rng.chance(50))
      group.sampling = random_sampling(rng);
  }
  batch.sampling = random_sampling(rng);
  batch.seed = rng.next();
  if (rng.chance(50))
    batch.required_weight_version = random_number(rng);
  batch.policy = random_text(rng, 0, 9);
  if (rng.chance(50))
    batch.chunk_tokens = random_u32(rng);
  batch.force_migration = rng.chance(50);
  batch.echo_prompts = rng.chance(50);
  if (rng.chance(50))
    batch.routed_experts_from = random_u32(rng);
  return batch;
}

weights_status random_weights_status(prng& rng) {
  weights_status status{.phase = random_text(rng, 0, 9),
                        .epoch = random_number(rng),
                        .next_epoch = random_number(rng),
                        .bytes_total = random_number(rng),
                        .seconds = random_double(rng),
                        .workers = {},
                        .previous_epoch = random_number(rng),
                        .paused = rng.chance(50)};
  for (auto n = rng.below(4); n > 0; --n)
    status.workers.push_back({worker_id{random_number(rng)}, random_number(rng), rng.chance(50)});
  return status;
}

status_report random_status(prng& rng) {
  status_report status{
    random_text(rng, 0, 9), random_number(rng), random_text(rng, 0, 9),    {}, {},
    random_number(rng),     random_double(rng), random_weights_status(rng)};
  for (auto n = rng.below(4); n > 0; --n)
    status.workers.push_back({worker_id{random_number(rng)}, random_text(rng, 0, 9), "ready",
                              random_number(rng), random_text(rng, 0, 9), random_number(rng),
                              random_number(rng), random_number(rng), random_number(rng),
                              random_number(rng), random_number(rng), random_number(rng),
                              random_number(rng), random_double(rng), random_number(rng)});
  for (auto n = rng.below(4); n > 0; --n)
    status.batches.push_back({random_text(rng, 1, 9), "context", random_number(rng),
                              random_number(rng), random_number(rng), random_number(rng),
                              random_number(rng)});
  return status;
}

weights_served random_served(prng& rng) {
  weights_served served{.epoch = random_number(rng),
                        .hash = {rng.next(), random_number(rng)},
                        .tensors = random_number(rng),
                        .bytes = random_number(rng),
                        .phases = {},
                        .pause_s = random_double(rng),
                        .workers = random_number(rng)};
  for (auto n = rng.below(5); n > 0; --n)
    served.phases.push_back({random_text(rng, 0, 12), random_double(rng)});
  return served;
}

scored random_scored(prng& rng) {
  scored answer{
    .rows = {}, .weight_version = random_number(rng), .numerics_profile = random_text(rng, 0, 24)};
  for (auto n = rng.below(5); n > 0; --n)
    answer.rows.push_back({random_floats(rng, rng.below(40))});
  return answer;
}

tensor_slice random_slice(prng& rng) {
  tensor_slice slice;
  slice.name = random_text(rng, 1, 30);
  slice.type = static_cast<kernels::dtype>(rng.below(3));
  std::uint64_t elements = 1;
  for (auto dims = rng.below(5); dims > 0; --dims)
    elements *= slice.shape.emplace_back(1 + rng.below(20));
  const auto begin = rng.below(elements);
  slice.offset = begin * kernels::size_of(slice.type);
  slice.data.resize((1 + rng.below(elements - begin)) * kernels::size_of(slice.type));
  for (auto& c : slice.data)
    c = static_cast<char>(rng.next());
  return slice;
}

weight_bucket random_bucket(prng& rng) {
  weight_bucket bucket{.epoch = random_number(rng), .bucket = 1 + rng.next() / 2, .slices = {}};
  for (auto n = 1 + rng.below(3); n > 0; --n)
    bucket.slices.push_back(random_slice(rng));
  return bucket;
}

commit_weights random_commit(prng& rng) {
  commit_weights commit{.epoch = random_number(rng), .hash = {}, .tensors = {}};
  if (rng.chance(50))
    commit.hash = content_hash{rng.next(), random_number(rng)};
  if (rng.chance(50))
    commit.tensors = random_number(rng);
  return commit;
}

weight_flip random_flip(prng& rng) {
  return rng.chance(50) ? weight_flip::between_batches : weight_flip::chunk_edge;
}

score random_score(prng& rng) {
  score what;
  for (auto n = 1 + rng.below(4); n > 0; --n) {
    auto& sequence = what.sequences.emplace_back();
    sequence.token_ids = random_tokens(rng, 1, 40);
    sequence.prompt_tokens = 1 + static_cast<std::uint32_t>(rng.below(sequence.token_ids.size()));
    sequence.temperature = rng.chance(30) ? 0 : 10 * random_share(rng);
  }
  if (rng.chance(50))
    what.weight_version = random_number(rng);
  return what;
}

response_ready random_response(prng& rng) {
  response_ready response;
  response.batch_key = random_text(rng, 1, 9);
  response.sequence = random_number(rng);
  response.group = random_u32(rng);
  response.index = random_u32(rng);
  response.id = random_text(rng, 0, 9);
  response.prompt_token_ids = random_tokens(rng, 0, 9);
  response.token_ids = random_tokens(rng, 0, 60);
  const auto tokens = response.token_ids.size();
  response.logprobs = random_floats(rng, tokens);
  response.kept_mass = random_floats(rng, rng.chance(50) ? tokens : 0);
  response.reason = static_cast<finish_reason>(1 + rng.below(3));
  const auto cut = static_cast<std::uint32_t>(rng.below(tokens + 1));
  if (rng.chance(80))
    response.weight_versions = {{random_number(rng), 0, cut},
                                {random_number(rng), cut, static_cast<std::uint32_t>(tokens)}};
  response.response_seed = rng.next();
  response.numerics_profile = random_text(rng, 0, 24);
  if (rng.chance(50)) {
    auto& experts = response.experts.emplace();
    experts.start = random_u32(rng);
    experts.layout = {static_cast<std::uint32_t>(rng.below(5)), 3,
                      1 + static_cast<std::uint32_t>(rng.below(2))};
    experts.ids.resize(rng.below(9) * experts.layout.position_bytes());
    for (auto& id : experts.ids)
      id = static_cast<char>(rng.next());
  }
  return response;
}

batch_done random_done(prng& rng) {
  batch_done done{random_text(rng, 1, 9), random_number(rng), {}};
  auto& s = done.summary;
  for (auto* x : {&s.responses, &s.tokens, &s.chunks, &s.migrations, &s.migrated_bytes,
                  &s.recomputed_tokens, &s.preemptions, &s.draft_tokens, &s.accepted_tokens})
    *x = random_number(rng);
  for (auto* x : {&s.wall_s, &s.tokens_per_s, &s.makespan_s, &s.tail_s, &s.worker_idle_fraction,
                  &s.mean_acceptance_length})
    *x = random_double(rng);
  for (auto* x : {&s.numerics_profile, &s.policy, &s.speculate})
    *x = random_text(rng, 0, 9);
  for (auto n = rng.below(4); n > 0; --n)
    s.workers.push_back({worker_id{random_number(rng)}, random_text(rng, 0, 9), random_number(rng),
                         random_double(rng), random_double(rng), random_double(rng),
                         random_number(rng), random_number(rng), random_number(rng),
                         random_number(rng), random_number(rng), random_number(rng),
                         random_number(rng), random_double(rng)});
  return done;
}

} // namespace

request random_request(prng& rng) {
  switch (rng.below(std::variant_size_v<request>)) {
    case 0: return random_batch(rng);
    case 1: return cancel_batch{random_text(rng, 1, 20)};
    case 2: return ack_results{random_text(rng, 1, 20), random_number(rng)};
    case 3: return resume_results{random_text(rng, 1, 20), random_number(rng)};
    case 4: return random_score(rng);
    case 5:
      return begin_weights{random_number(rng), rng.chance(50), random_flip(rng), rng.chance(50)};
    case 6: return random_bucket(rng);
    case 7: return random_commit(rng);
    case 8: return abort_weights{random_number(rng)};
    case 9:
      return load_weights{random_text(rng, 1, 40), random_number(rng), random_flip(rng),
                          rng.chance(50)};
    case 10: return rollback_weights{};
    case 11: return pause{};
    case 12: return resume{};
    default: return get_status{};
  }
}

event random_event(prng& rng) {
  switch (rng.below(std::variant_size_v<event>)) {
    case 0:
      return batch_accepted{random_text(rng, 1, 20), random_number(rng), random_number(rng),
                            random_text(rng, 0, 9),
                            rng.below(3) == 0 ? std::nullopt : std::optional{random_number(rng)}};
    case 1: return request_done{};
    case 2:
      return request_failed{errc::queue_full, random_text(rng, 0, 20), random_text(rng, 0, 20),
                            random_text(rng, 0, 20)};
    case 3: return random_status(rng);
    case 4: return random_response(rng);
    case 5: return weights_begun{random_number(rng), random_number(rng)};
    case 6: return random_served(rng);
    case 7: return random_scored(rng);
    default: return random_done(rng);
  }
}

} // namespace rollcast::wire
