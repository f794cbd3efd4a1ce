#include "actors/request_ledger.hpp"

namespace rollcast {

result<void> request_ledger::check(const std::string& peer, const std::string& client,
                                   std::size_t bytes, std::size_t client_max) const {
  const auto of_peer = by_peer_.find(peer);
  const auto waiting = of_peer == by_peer_.end() ? std::size_t{0} : of_peer->second.size();
  const auto of_client = by_client_.find(client);
  const auto has = of_client == by_client_.end() ? sum{} : of_client->second;
  if (waiting >= bounds_.of_peer || has.requests >= client_max || all_.requests >= bounds_.of_all)
    return fail(errc::queue_full,
                std::to_string(waiting) + " requests of yours wait for the scheduler, "
                  + std::to_string(has.requests) + " of client " + client + ", "
                  + std::to_string(all_.requests) + " in all; allowed are "
                  + std::to_string(bounds_.of_peer) + ", " + std::to_string(client_max) + " and "
                  + std::to_string(bounds_.of_all) + "; ask again later");
  if (has.bytes + bytes > bounds_.bytes_of_client || all_.bytes + bytes > bounds_.bytes_of_all)
    return fail(errc::queue_full, "requests of " + std::to_string(has.bytes) + " bytes of client "
                                    + client + " wait for the scheduler, "
                                    + std::to_string(all_.bytes) + " in all, and this one has "
                                    + std::to_string(bytes) + "; allowed are "
                                    + std::to_string(bounds_.bytes_of_client) + " and "
                                    + std::to_string(bounds_.bytes_of_all) + "; ask again later");
  return {};
}

void request_ledger::take_on(const std::string& peer, const std::string& client,
                             std::uint64_t request_id, std::size_t bytes) {
  by_peer_[peer].emplace(request_id, entry{client, bytes});
  auto& of_client = by_client_[client];
  ++of_client.requests;
  of_client.bytes += bytes;
  ++all_.requests;
  all_.bytes += bytes;
}

void request_ledger::answered(const std::string& peer, std::uint64_t request_id) {
  const auto of_peer = by_peer_.find(peer);
  if (of_peer == by_peer_.end())
    return;
  const auto it = of_peer->second.find(request_id);
  if (it == of_peer->second.end())
    return;
  const auto of_client = by_client_.find(it->second.client);
  of_client->second.bytes -= it->second.bytes;
  all_.bytes -= it->second.bytes;
  --all_.requests;
  if (--of_client->second.requests == 0)
    by_client_.erase(of_client);
  of_peer->second.erase(it);
  if (of_peer->second.empty())
    by_peer_.erase(of_peer);
}

} // namespace rollcast
