#pragma once

#include "engine/base/ids.hpp"

#include <optional>
#include <string>
#include <vector>

namespace rollcast::weights {

/// One worker that is to be given an update.
struct chain_member {
  worker_id worker;
  std::string host; ///< Equal names share a machine, and no link between them is crossed.
};

/// From whom one worker pulls.
struct chain_link {
  worker_id worker;
  std::optional<worker_id> upstream; ///< None: the coordinator.
  friend bool operator==(const chain_link&, const chain_link&) = default;
};

/// Orders the members in one chain, coordinator -> a -> b -> ...: every link carries the update
/// once, so the time hardly grows with the number of workers (cluster/sim/weight_fanout measures
/// chain, tree and star). Members of one host follow one another, so that a host is entered once;
/// those of the coordinator's own host come first. Hosts and members are in order of their lowest
/// id: equal fleets give equal chains.
/// @param coordinator_host  may be empty: unknown
std::vector<chain_link> plan_chain(std::vector<chain_member> members,
                                   const std::string& coordinator_host);

} // namespace rollcast::weights
