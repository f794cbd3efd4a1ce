#include "cluster/weights/fanout.hpp"

#include <algorithm>
#include <map>
#include <tuple>

namespace rollcast::weights {

std::vector<chain_link> plan_chain(std::vector<chain_member> members,
                                   const std::string& coordinator_host) {
  std::map<std::string, worker_id> first; // the lowest id on each host
  for (const auto& m : members) {
    const auto [it, added] = first.emplace(m.host, m.worker);
    if (!added)
      it->second = std::min(it->second, m.worker);
  }
  const auto key = [&](const chain_member& m) {
    const auto away = coordinator_host.empty() || m.host != coordinator_host;
    return std::tuple{away, first.at(m.host), m.worker};
  };
  std::ranges::sort(members, {}, key);
  std::vector<chain_link> chain;
  chain.reserve(members.size());
  for (const auto& m : members)
    chain.push_back({m.worker, chain.empty() ? std::nullopt : std::optional{chain.back().worker}});
  return chain;
}

} // namespace rollcast::weights
