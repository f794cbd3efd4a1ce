#include "tests/unit/wire/random_messages.hpp"

#include <bit>
#include <cmath>
#include <limits>

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
  return batch;
}

status_report random_status(prng& rng) {
  status_report status{random_text(rng, 0, 9), random_number(rng), random_text(rng, 0, 9), {}, {},
                       random_number(rng),     random_double(rng)};
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
  switch (rng.below(5)) {
    case 0: return random_batch(rng);
    case 1: return cancel_batch{random_text(rng, 1, 20)};
    case 2: return ack_results{random_text(rng, 1, 20), random_number(rng)};
    case 3: return resume_results{random_text(rng, 1, 20), random_number(rng)};
    default: return get_status{};
  }
}

event random_event(prng& rng) {
  switch (rng.below(6)) {
    case 0:
      return batch_accepted{random_text(rng, 1, 20), random_number(rng), random_number(rng),
                            random_text(rng, 0, 9), random_number(rng)};
    case 1: return request_done{};
    case 2:
      return request_failed{errc::queue_full, random_text(rng, 0, 20), random_text(rng, 0, 20),
                            random_text(rng, 0, 20)};
    case 3: return random_status(rng);
    case 4: return random_response(rng);
    default: return random_done(rng);
  }
}

} // namespace rollcast::wire
