#pragma once

#include "tests/unit/actors/real_cluster.hpp"

#include <gtest/gtest.h>

#include <array>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <utility>
#include <vector>

/// Updates of a fake fleet's weights, and the truth about what an epoch generates.
namespace rollcast::test {

/// Values of the two tensors of a fake device, by name.
using fake_values = std::map<std::string, std::uint64_t>;

inline std::string bytes_of_value(std::uint64_t value) {
  std::string bytes(sizeof(value), '\0');
  std::memcpy(bytes.data(), &value, sizeof(value));
  return bytes;
}

inline wire::tensor_slice whole_tensor(const std::string& name, std::uint64_t value) {
  return {name, kernels::dtype::f32, {2}, 0, bytes_of_value(value)};
}

inline wire::weight_bucket bucket_of(std::uint64_t epoch, std::uint64_t number,
                                     const fake_values& values) {
  wire::weight_bucket bucket{epoch, number, {}};
  for (const auto& [name, value] : values)
    bucket.slices.push_back(whole_tensor(name, value));
  return bucket;
}

/// Sends one update, a tensor a bucket, and waits until it is served.
inline result<wire::weights_served> update(wire::controller_client& client,
                                           const fake_values& values,
                                           const wire::begin_weights& how = {}) {
  const auto begun = client.begin_weights(how);
  if (!begun)
    return fail(begun);
  std::uint64_t number = 0;
  for (const auto& value : values)
    if (auto sent = client.send_bucket(bucket_of(begun->epoch, ++number, {value})); !sent)
      return fail(sent);
  return client.commit_weights({begun->epoch, {}, values.size()}, std::chrono::seconds{20});
}

/// Updates that are served by all `workers` or the test has failed.
inline wire::weights_served must_update(wire::controller_client& client, const fake_values& values,
                                        const wire::begin_weights& how = {}) {
  auto served = update(client, values, how);
  EXPECT_TRUE(served) << served.error().detail;
  return served ? *served : wire::weights_served{};
}

/// Polls the status until `holds`.
inline wire::status_report wait_for(cluster& c,
                                    const std::function<bool(const wire::status_report&)>& holds,
                                    const std::string& what) {
  auto client = connect(c);
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds{20};
  while (std::chrono::steady_clock::now() < until) {
    auto status = client.status();
    EXPECT_TRUE(status) << status.error().detail;
    if (status && holds(*status))
      return *status;
    std::this_thread::sleep_for(std::chrono::milliseconds{2});
  }
  ADD_FAILURE() << "not within 20 s: " << what;
  return {};
}

inline std::size_t in_state(const wire::status_report& status, const std::string& state) {
  return static_cast<std::size_t>(std::count_if(status.workers.begin(), status.workers.end(),
                                                [&](const auto& w) { return w.state == state; }));
}

inline wire::status_report wait_for_ready(cluster& c, std::size_t workers) {
  return wait_for(
    c, [&](const auto& s) { return in_state(s, "ready") == workers; },
    std::to_string(workers) + " workers ready");
}

inline wire::status_report wait_for_phase(cluster& c, const std::string& phase) {
  return wait_for(
    c, [&](const auto& s) { return s.weights.phase == phase; }, "phase " + phase);
}

/// What a cluster that was started with these weights says to `sample_batch`.
inline results truth_of(std::uint64_t seed) {
  static std::map<std::uint64_t, results> known;
  auto& truth = known[seed];
  if (truth.empty()) {
    fake_device device;
    device.weights = seed;
    cluster c;
    c.add_worker(device);
    auto batch = sample_batch("truth");
    batch.policy = "static";
    truth = plain(run(c, batch));
  }
  return truth;
}

/// The results as made by that epoch alone.
inline results at_epoch(results in, std::uint64_t epoch) {
  for (auto& [place, r] : in)
    r.weight_versions = {{epoch, 0, static_cast<std::uint32_t>(r.token_ids.size())}};
  return in;
}

/// Generates what weights of that seed say after `prefix`.
class epoch_oracle {
public:
  explicit epoch_oracle(std::uint64_t seed) : engine_(device_of(seed), {}) {}

  /// @returns the next `count` tokens and their log-probabilities.
  std::pair<std::vector<token_id>, std::vector<float>>
  continues(std::vector<token_id> prefix, std::size_t prompt, std::size_t count,
            const wire::sampling_params& sampling, std::uint64_t seed) {
    chunk_request request;
    request.response = {++last_};
    request.tokens = std::move(prefix);
    request.prompt_tokens = static_cast<std::uint32_t>(prompt);
    request.sampling = to_engine(sampling, seed);
    request.generate_max = static_cast<std::uint32_t>(count);
    const auto admitted = engine_.admit(std::move(request));
    EXPECT_TRUE(admitted) << admitted.error().detail;
    while (engine_.has_work())
      for (const auto& r : engine_.step()) {
        std::pair<std::vector<token_id>, std::vector<float>> made{
          {r.tokens.begin(), r.tokens.end()}, {r.logprobs.begin(), r.logprobs.end()}};
        engine_.release({last_});
        return made;
      }
    return {};
  }

private:
  static std::unique_ptr<fake_backend> device_of(std::uint64_t seed) {
    fake_device device;
    device.weights = seed;
    return std::make_unique<fake_backend>(device);
  }

  engine engine_;
  std::uint64_t last_ = 0;
};

/// Checks every span of every response against the epoch that is said to have made it; `seeds` are
/// the weights of each epoch. @returns how many responses have more than one span.
inline std::size_t check_spans(const results& got, const wire::submit_batch& batch,
                               const std::map<std::uint64_t, std::uint64_t>& seeds) {
  std::map<std::uint64_t, epoch_oracle> oracles;
  for (const auto& [epoch, seed] : seeds)
    oracles.emplace(epoch, seed);
  std::size_t several = 0;
  for (const auto& [place, r] : got) {
    const auto& group = batch.groups[place.first];
    const auto& sampling = group.sampling ? *group.sampling : batch.sampling;
    several += r.weight_versions.size() > 1 ? 1 : 0;
    std::uint32_t at = 0;
    std::uint64_t last = 0;
    for (const auto& span : r.weight_versions) {
      EXPECT_EQ(span.start, at) << "no hole, no overlap";
      EXPECT_GT(span.end, span.start);
      EXPECT_GE(span.version, last);
      at = span.end;
      last = span.version;
      if (!oracles.contains(span.version)) {
        ADD_FAILURE() << "epoch " << span.version << " was never served";
        continue;
      }
      auto prefix = group.prompt_token_ids;
      prefix.insert(prefix.end(), r.token_ids.begin(), r.token_ids.begin() + span.start);
      const auto made = oracles.at(span.version)
                          .continues(prefix, group.prompt_token_ids.size(), span.end - span.start,
                                     sampling, r.response_seed);
      EXPECT_EQ(made.first, std::vector<token_id>(r.token_ids.begin() + span.start,
                                                  r.token_ids.begin() + span.end))
        << "group " << place.first << ", index " << place.second << ", tokens from " << span.start
        << " are not those of epoch " << span.version;
      EXPECT_EQ(made.second,
                std::vector<float>(r.logprobs.begin() + span.start, r.logprobs.begin() + span.end));
    }
    EXPECT_EQ(at, r.token_ids.size()) << "every token has its epoch";
  }
  return several;
}

} // namespace rollcast::test
