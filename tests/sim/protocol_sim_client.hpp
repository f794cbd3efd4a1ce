#pragma once

#include "cluster/wire/messages.hpp"
#include "engine/base/prng.hpp"
#include "tests/sim/protocol_sim_truth.hpp"

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace rollcast::sim {

/// A controller: submits batches, now and then twice, acknowledges late and twice, cancels,
/// resumes, pauses, has tokens scored, and, if it is the trainer, updates the weights. It checks
/// everything that it hears.
class sim_client {
public:
  struct counters {
    std::uint64_t results = 0;
    std::uint64_t repeated = 0; ///< Results that came again after a reconnection.
    std::uint64_t several_epochs = 0;
    std::uint64_t cancelled = 0;
    std::uint64_t failed = 0; ///< Batches that could not go on.
    std::uint64_t scored = 0;
    std::uint64_t unscored = 0;
    std::uint64_t served = 0;
    std::uint64_t rolled_back = 0;
    std::uint64_t not_served = 0;
  };

  /// @param served  The epoch that the cluster serves, for what is expected of an update.
  sim_client(std::uint64_t seed, std::string name, bool trains, bool with_static, sim_truth& truth,
             std::function<std::uint64_t()> served);

  /// Does one thing, perhaps. In calm it does what ends its work.
  void act(bool calm);
  void hear(const wire::event_envelope& what);
  /// It has a new connection: what it asked stays unanswered. @returns the name of the old one.
  std::string reconnect();

  /// Who it is to the scheduler.
  std::string peer() const { return name_ + "#" + std::to_string(connections_); }
  /// Everything that it wanted has come to an end.
  bool done() const;
  /// It begins one more complete update, the last.
  void publish();
  bool published() const { return !update_ && !last_update_; }

  std::deque<wire::request_envelope> out;
  std::string wrong; ///< "" while all is well.
  counters counts;

private:
  struct batch {
    wire::submit_batch spec;
    std::uint64_t size = 0;
    std::uint64_t next = 0;          ///< Sequence that must be pushed next; 0: not attached.
    std::uint64_t have = 0;          ///< All up to it came.
    std::uint64_t acknowledging = 0; ///< As asked: up to here nothing need come again.
    std::uint64_t acknowledged = 0;  ///< As answered.
    std::vector<wire::response_ready> results;
    bool accepted = false;
    bool asking = false; ///< A submission or resumption is not answered yet.
    bool cancelling = false;
    bool over = false;
    bool refused = false;
    std::optional<errc> failure;
  };
  struct weight_update {
    std::uint64_t epoch = 0;
    std::uint64_t base = 0;
    bool begun = false;
    bool committed = false;
    bool complete = true;
    bool wrong_hash = false;
    std::map<std::size_t, std::uint64_t> values; ///< By tensor.
    std::vector<wire::tensor_slice> slices;      ///< Still to be sent.
    std::uint64_t buckets = 0;
  };

  std::uint64_t ask(wire::request what);
  batch* find(const std::string& key);
  bool happens(std::uint32_t percent) { return rng_.chance(percent); }
  void fail_with(const std::string& what) {
    if (wrong.empty())
      wrong = peer() + ": " + what;
  }

  void plan_batches(bool with_static);
  void act(batch& b, bool calm);
  void collect(batch& b, bool calm);
  void say_anything();
  void ask_scores();

  void take(batch& b, const wire::batch_accepted& a);
  void take_refusal(batch& b, const wire::request& asked, const wire::request_failed& why);
  void take_result(const wire::response_ready& r);
  void take_end(const std::string& key, std::uint64_t sequence, std::optional<errc> failure);
  void take_answer(const wire::request& asked, const wire::event& answer);
  void push(const wire::event& what);

  // The trainer's part.
  void train(bool calm);
  void begin();
  void make_slices();
  void take_begun(const wire::weights_begun& b);
  void take_served(const wire::request& asked, const wire::weights_served& s);
  void take_unserved(const wire::request& asked, const wire::request_failed& why);

  prng rng_;
  std::string name_;
  bool trains_;
  sim_truth& truth_;
  std::function<std::uint64_t()> served_;
  std::uint64_t connections_ = 1;
  std::uint64_t requests_ = 0;
  std::map<std::uint64_t, wire::request> asked_; ///< Not answered yet.
  std::vector<batch> batches_;
  std::size_t updates_left_ = 0;
  std::optional<weight_update> update_;
  bool last_update_ = false;
  bool paused_ = false;
  bool update_asked_ = false; ///< A rollback is not answered yet.
};

} // namespace rollcast::sim
