#pragma once

#include "actors/node.hpp"
#include "cluster/wire/client.hpp"
#include "tests/unit/actors/fake_backend.hpp"

#include <gtest/gtest.h>

#include <chrono>
#include <future>
#include <map>
#include <string>
#include <thread>
#include <utility>
#include <vector>

/// A cluster with real sockets in one process, and a controller that collects its results.
namespace rollcast::test {

/// By group and index.
using results = std::map<std::pair<std::uint32_t, std::uint32_t>, wire::response_ready>;

/// A scheduler and workers that stop with the object.
class cluster {
public:
  explicit cluster(scheduler_options scheduler = {}) {
    scheduler_node_options options;
    options.frontend.bind = "tcp://127.0.0.1:*";
    options.cluster_port = 0;
    options.metrics_port = 0;
    options.scheduler = scheduler;
    std::promise<scheduler_ports> ready;
    auto ports_soon = ready.get_future();
    scheduler_ = std::jthread{[options, &ready](std::stop_token stop) {
      const auto ended =
        run_scheduler(options, stop, [&](const scheduler_ports& p) { ready.set_value(p); });
      EXPECT_TRUE(ended) << ended.error().detail;
    }};
    ports = ports_soon.get();
  }
  ~cluster() {
    workers.clear();
    scheduler_.request_stop();
  }

  void add_worker(fake_device device = {}, std::uint32_t batch_max = 8,
                  std::chrono::milliseconds drain = std::chrono::seconds{5},
                  std::uint64_t epoch = 0, std::shared_ptr<communicator_maker> group = nullptr) {
    worker_node_options options;
    options.collectives = std::move(group);
    options.collective_limits.round_max = std::chrono::milliseconds{500};
    options.collective_limits.prepare_max = std::chrono::milliseconds{200};
    options.name = "w" + std::to_string(workers.size());
    options.scheduler_port = ports.cluster_port;
    options.engine.batch_max = batch_max;
    options.drain_ms_max = drain;
    options.weight_epoch = epoch;
    workers.emplace_back([options, device](std::stop_token stop) {
      const auto ended = run_worker(options, std::make_unique<fake_backend>(device), stop);
      EXPECT_TRUE(ended) << ended.error().detail;
    });
  }

  scheduler_ports ports;
  std::vector<std::jthread> workers;

private:
  std::jthread scheduler_;
};

inline wire::submit_batch sample_batch(const std::string& key) {
  wire::submit_batch batch;
  batch.batch_key = key;
  batch.seed = 7;
  batch.sampling.max_new_tokens = 300;
  for (int g = 0; g < 12; ++g) {
    auto& group = batch.groups.emplace_back();
    group.id = "g" + std::to_string(g);
    group.group_size = 4;
    for (int t = 0; t <= g * 3; ++t)
      group.prompt_token_ids.push_back(1 + (g * 31 + t * 7) % 999);
  }
  batch.groups[3].seed = 99;
  batch.groups[4].sampling = batch.sampling;
  batch.groups[4].sampling->top_k = 5;
  return batch;
}

/// Collects a whole batch and its summary; acknowledges as it goes.
inline results collect(wire::controller_client& client, const std::string& key,
                       wire::batch_summary* summary = nullptr) {
  results out;
  std::uint64_t expected = 1;
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds{30};
  while (std::chrono::steady_clock::now() < until) {
    auto event = client.next_event(std::chrono::seconds{1});
    if (!event)
      continue;
    if (auto* r = std::get_if<wire::response_ready>(&*event)) {
      EXPECT_EQ(r->sequence, expected++) << "numbered once, without holes";
      EXPECT_EQ(r->logprobs.size(), r->token_ids.size());
      EXPECT_TRUE(client.ack(key, r->sequence));
      auto& place = out[{r->group, r->index}];
      EXPECT_EQ(place.sequence, 0u) << "finished twice";
      place = std::move(*r);
    } else if (auto* done = std::get_if<wire::batch_done>(&*event)) {
      EXPECT_EQ(done->sequence, expected);
      EXPECT_TRUE(client.ack(key, done->sequence));
      if (summary != nullptr)
        *summary = done->summary;
      return out;
    } else {
      ADD_FAILURE() << std::get<wire::request_failed>(*event).message;
      return out;
    }
  }
  ADD_FAILURE() << "no BatchDone; " << out.size() << " results";
  return out;
}

inline wire::controller_client connect(const cluster& c) {
  auto client =
    wire::controller_client::connect(c.ports.frontend_endpoint, std::chrono::seconds{5});
  EXPECT_TRUE(client) << client.error().detail;
  return std::move(*client);
}

inline results run(cluster& c, wire::submit_batch batch, wire::batch_summary* summary = nullptr) {
  auto client = connect(c);
  const auto accepted = client.submit(batch);
  EXPECT_TRUE(accepted) << accepted.error().detail;
  return collect(client, batch.batch_key, summary);
}

/// The results without what may differ between two runs.
inline results plain(results in) {
  for (auto& [place, r] : in) {
    r.sequence = 0;
    r.batch_key.clear();
  }
  return in;
}

} // namespace rollcast::test
