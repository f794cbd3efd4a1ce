#pragma once

#include "actors/controller_link.hpp"
#include "actors/journal_access.hpp"
#include "actors/probe.hpp"
#include "actors/protocol.hpp"
#include "actors/weight_store.hpp"
#include "cluster/batch/admission.hpp"
#include "cluster/batch/batch_book.hpp"
#include "cluster/collective/coordinator.hpp"
#include "cluster/policy/scheduler_policy.hpp"
#include "cluster/telemetry/metrics.hpp"
#include "cluster/weights/update_machine.hpp"

#include <caf/all.hpp>

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <utility>

namespace rollcast {

class status_board;

struct scheduler_options {
  policy::policy_limits policy;
  batch_limits batches;
  std::string default_policy = "context"; ///< For batches that name none.
  std::uint32_t chunk_tokens = 1024;      ///< For batches that give none; 0 is unlimited.
  bool measured_prices = true;            ///< Off: KV has the prices of `policy`.
  bool batches_wait = false;              ///< A batch starts when all before it have ended.
  collective::coordinator_limits collectives;
  /// Failed starts in a row of one response that end its batch. Between two of them it waits
  /// `failure_pause`, then twice that, and so on.
  std::uint32_t failures_max = 8;
  caf::timespan failure_pause = std::chrono::milliseconds{50};
  /// Workers lost in a row under one response that end its batch: it may be what kills them. More
  /// than the failures, since every chunk that a lost worker had is counted.
  std::uint32_t losses_max = 32;
  /// For a worker to take a chunk on. Long, because a worker answers between two steps and a step
  /// of a large model may take a minute; a dead or silent worker is noticed by heartbeats long
  /// before.
  caf::timespan request_timeout = std::chrono::minutes{10};
  caf::timespan tick_interval = std::chrono::milliseconds{200};
  /// How long each step of a weight update may take. `waiting` is long, because between batches it
  /// lasts as long as the longest open batch.
  struct {
    caf::timespan receiving = std::chrono::minutes{1};
    caf::timespan preparing = std::chrono::minutes{15};
    caf::timespan silence = std::chrono::seconds{30};
    caf::timespan waiting = std::chrono::hours{6};
    caf::timespan deciding = std::chrono::seconds{30}; // for the journal to write it down
    caf::timespan flipping = std::chrono::seconds{30};
    caf::timespan paused =
      std::chrono::minutes{1}; // that a flip waits for batches which are not run
    caf::timespan unserved =
      std::chrono::minutes{5}; // that a batch waits for weights which nobody has
  } weight_deadlines;
  /// Bounds of all requests for scores together; one more is refused with `queue_full`.
  struct {
    std::size_t requests_max = 64;
    std::uint64_t tokens_max = std::uint64_t{1} << 25;
    caf::timespan deadline = std::chrono::hours{1}; // of one request, however long it waits
  } scores;
};

/// What the SCHEDULER talks through.
struct scheduler_parts {
  std::shared_ptr<controller_link> link;
  std::shared_ptr<scheduler_metrics> metrics;
  std::shared_ptr<scheduler_pulse> pulse;
  std::shared_ptr<weight_store> weights = {};   ///< Null: weights are never updated.
  std::shared_ptr<journal_access> journal = {}; ///< Null: a restart forgets everything.
  std::shared_ptr<status_board> board = {};     ///< Null: nobody looks at the page.
};

/// State of the SCHEDULER actor: the policy decides, the book remembers, the maps say how to reach
/// what they name.
struct scheduler_state {
  /// Sequences of one request for scores that a worker is given together.
  struct score_share {
    std::uint64_t job = 0;
    std::vector<std::uint32_t> sequences;
  };
  struct worker {
    decode_worker_actor handle;
    worker_hello hello;
    worker_beat last;           ///< Its latest figures.
    std::uint64_t heard_ns = 0; ///< When they came, or it did.
    engine_stats paced;         ///< Where they stood when its pace was last taken.
    bool draining = false;
    bool routable = false; ///< Serves the cluster's epoch: the policy knows it.
    std::map<std::uint64_t, score_share> scoring; ///< What it was given to score, by number.
    std::uint64_t feeding = 0; ///< Number under which it alone is offered tensors, or 0.
  };
  /// What the first worker brought and every other must match.
  struct cluster {
    cluster_model model;
    std::string name;
    content_hash numerics_hash;
    content_hash weights_hash;
    std::string eos_token_ids;
  };

  scheduler_parts parts;
  scheduler_options options;
  std::optional<policy::scheduler_policy> policy;
  std::optional<batch_book> book;
  std::optional<cluster> identity;
  std::map<worker_id, worker> workers;
  /// How often in a row a response came to nothing, since its last edge.
  struct misfortune {
    std::uint32_t failures = 0; ///< Its worker did not start it.
    std::uint32_t losses = 0;   ///< Its worker was lost.
    std::uint32_t attempt = 0;  ///< That failed last: news of it may come twice.
  };
  std::map<response_id, misfortune> misfortunes;
  std::uint64_t next_worker = 1;
  std::uint64_t started_ns = 0;
  bool plan_pending = false; ///< A `plan` message is on its way.
  std::size_t stranded = 0;  ///< As last said in the log.
  bool paused = false;       ///< By a controller: nothing is placed.
  bool stopping = false;     ///< The process is to end: nothing is placed or begun.

  /// What a controller and the figures are to be told of the update in work.
  struct weight_update {
    weights::update_id number;
    std::uint64_t epoch = 0;
    std::string peer;                       ///< The controller that began it.
    std::optional<controller_request> from; ///< Who waits for its end.
    bool staging = false;                   ///< A thread reads its directory, or hashes.
    bool directory = false;                 ///< It comes out of one.
    std::optional<content_hash> hash;       ///< As its controller said at the commit.
    std::optional<std::uint64_t> count;     ///< Of its tensors; so.
    std::uint64_t tensors = 0;
    std::uint64_t bytes = 0;
    std::uint64_t began_ns = 0;
    weights::phase at = weights::phase::receiving;
    std::uint64_t phase_ns = 0; ///< When `at` began.
    std::vector<wire::phase_seconds> phases;
  };
  collective::coordinator collectives;
  collective::coordinator::counters collective_seen; ///< As last told to people.
  /// Who casts an update to the collective group.
  struct {
    weights::update_id update;
    worker_id worker;
  } caster;
  std::optional<weights::update_machine> machine;
  std::optional<weight_update> update;
  std::optional<weights::hold> held; ///< Work must come to an end.
  bool scores_wait = false;   ///< It has but for sequences being scored: no more are given out.
  bool quiet = false;         ///< It has, and nothing is placed.
  std::uint64_t quiet_ns = 0; ///< Since then.
  /// A flip whose record is not on disk yet: nobody is told of it before.
  struct flip_decision {
    weights::update_id update;
    std::uint64_t mark = 0; ///< Records that must be on disk.
    std::uint64_t since_ns = 0;
  };
  std::optional<flip_decision> deciding;
  bool weights_changed = false; ///< By a scheduler before this one; it cannot tell how far.
  /// Since when the flip waits for what a pause keeps from ending; 0: it does not.
  std::uint64_t stuck_ns = 0;
  /// Since when no worker that is here can be given the cluster's weights; 0: one can.
  std::uint64_t unserved_ns = 0;
  bool settling = false; ///< Decisions of `machine` are being carried out.
  /// Workers that must not come back by themselves, by process, and why.
  std::map<std::string, error> banned;

  /// A request for log-probabilities.
  struct score_job {
    controller_request from;
    std::uint64_t epoch = 0;
    std::uint64_t began_ns = 0;
    std::uint64_t retry_ns = 0;         ///< It is looked at again then, if not before.
    std::uint64_t tokens = 0;           ///< Of all its sequences.
    std::vector<std::uint32_t> waiting; ///< Sequences that nobody has, the next one last.
    std::uint32_t running = 0;          ///< Shares that workers have.
    std::uint32_t scored = 0;           ///< Sequences.
    std::uint32_t failures = 0;
    std::set<worker_id> lacking; ///< That do not hold the epoch.
    std::vector<wire::scored_row> rows;
  };
  std::map<std::uint64_t, score_job> scores;
  std::uint64_t last_score = 0;
  std::uint64_t last_share = 0;

  static inline const char* name = "scheduler";
};

/// Takes batches from controllers and chunks' ends from workers, and places what is placeable. All
/// judgement sits in `policy::scheduler_policy`, all memory of responses in `batch_book`; this
/// shell turns messages into events and decisions into requests.
scheduler_actor::behavior_type scheduler(scheduler_actor::stateful_pointer<scheduler_state> self,
                                         scheduler_parts parts, scheduler_options options);

} // namespace rollcast

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(rollcast::scheduler_parts)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(rollcast::scheduler_options)
