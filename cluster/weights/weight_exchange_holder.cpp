#include "cluster/transport/send_to_peer.hpp"
#include "cluster/weights/weight_exchange_loop.hpp"

#include <algorithm>

namespace rollcast {
namespace {

constexpr std::size_t withdrawn_max = 64;

/// What a message holds on to. ZeroMQ lets go on a thread of its own; `lent` says in our own terms,
/// which a sanitizer sees, that this comes after.
struct loan {
  std::shared_ptr<const void> owner;
  std::atomic<bool> lent{false};
};

void end_loan(void*, void* hint) {
  const std::unique_ptr<loan> over{static_cast<loan*>(hint)};
  (void)over->lent.load(std::memory_order_acquire);
}

/// A message over the cargo's own memory, which it keeps alive until ZeroMQ has sent it.
zmq::message_t lend(kept_bytes bytes) {
  auto fresh = std::make_unique<loan>();
  fresh->owner = std::move(bytes.owner);
  fresh->lent.store(true, std::memory_order_release);
  // ZeroMQ only reads what it sends; its interface does not say so.
  const auto data = const_cast<std::byte*>(bytes.bytes.data());
  zmq::message_t made{data, bytes.bytes.size(), end_loan, fresh.get()};
  (void)fresh.release(); // now the message's
  return made;
}

} // namespace

void weight_exchange::loop::on(offer_command& c) {
  const auto known = offers_.find(c.update);
  if (known != offers_.end() && known->second.cargo == c.cargo)
    return;
  if (known != offers_.end()) {
    drop_offer(c.update, "another cargo is offered under its number");
  } else if (offers_.size() >= options_.offers_max) {
    const auto oldest =
      std::min_element(offers_.begin(), offers_.end(), [](const auto& a, const auto& b) {
        return a.second.since < b.second.since;
      });
    drop_offer(oldest->first, "too many are offered");
  }
  std::erase(withdrawn_, c.update);
  offering fresh;
  fresh.cargo = std::move(c.cargo);
  fresh.since = ++last_offer_;
  offers_.emplace(c.update, std::move(fresh));
}

void weight_exchange::loop::on(const withdraw_command& c) {
  drop_offer(c.update, "it was withdrawn");
}

void weight_exchange::loop::drop_offer(std::uint64_t update, std::string_view why) {
  const auto it = offers_.find(update);
  if (it == offers_.end())
    return;
  const auto waiting = std::move(it->second.waiting);
  offers_.erase(it);
  std::set<std::string> gone;
  for (const auto& [slice, peers] : waiting)
    for (const auto& who : peers)
      if (gone.insert(who.peer).second)
        refuse(who.peer, {.update = update, .attempt = who.attempt}, no_slice, errc::cancelled,
               why);
  for (const auto& name : gone)
    drop_parked(name);
  withdrawn_.push_back(update);
  if (withdrawn_.size() > withdrawn_max)
    withdrawn_.pop_front();
}

void weight_exchange::loop::hear_pullers() {
  for (int turn = 0; turn < 64; ++turn) {
    zmq::message_t name;
    zmq::message_t body;
    bool odd = false;
    try {
      if (!router_.recv(name, zmq::recv_flags::dontwait))
        return;
      bool more = name.more() && router_.recv(body, zmq::recv_flags::dontwait) && body.more();
      for (; more; odd = true) { // no message to a holder has a second frame
        zmq::message_t extra;
        more = router_.recv(extra, zmq::recv_flags::dontwait) && extra.more();
      }
    } catch (const zmq::error_t&) {
      return;
    }
    if (door_ && !door_->who_sent(body))
      continue; // its key was taken from the list
    if (odd)
      ++counts.frames_rejected;
    else
      hear_puller(name.to_string(), body);
  }
}

void weight_exchange::loop::hear_puller(const std::string& name, const zmq::message_t& body) {
  const auto frame = decode_weight_frame({body.data<std::byte>(), body.size()});
  if (!frame || frame->kind != weight_message::want) {
    ++counts.frames_rejected;
    return;
  }
  hear_want(name, *frame);
}

void weight_exchange::loop::hear_want(const std::string& name, const weight_frame& frame) {
  const auto update = "weight update " + std::to_string(frame.update);
  const auto it = offers_.find(frame.update);
  if (it == offers_.end()) {
    if (std::ranges::find(withdrawn_, frame.update) != withdrawn_.end())
      return refuse(name, frame, no_slice, errc::cancelled, update + " was withdrawn");
    return refuse(name, frame, no_slice, errc::stale_epoch, update + " is not known here");
  }
  auto& o = it->second;
  if (frame.manifest != o.cargo->manifest() || frame.slice_bytes != o.cargo->slice_bytes())
    return refuse(name, frame, no_slice, errc::frame_malformed,
                  update + " is " + to_string(o.cargo->manifest()) + " in slices of "
                    + std::to_string(o.cargo->slice_bytes()) + " bytes here, asked for "
                    + to_string(frame.manifest) + " in slices of "
                    + std::to_string(frame.slice_bytes));
  if (frame.slice >= o.cargo->slices()) {
    ++counts.frames_rejected;
    return refuse(name, frame, frame.slice, errc::frame_malformed,
                  update + " has no slice " + std::to_string(frame.slice));
  }
  if (o.cargo->left_out(frame.slice))
    return refuse(name, frame, frame.slice, errc::stale_epoch,
                  "slice " + std::to_string(frame.slice) + " of " + update
                    + " is of a tensor that did not change here; ask the coordinator");
  if (auto bytes = o.cargo->bytes_of_slice(frame.slice))
    return send_slice(name, frame, std::move(*bytes));
  park(name, frame, o);
}

void weight_exchange::loop::park(const std::string& name, const weight_frame& frame, offering& o) {
  const auto by = parked_by_.find(name);
  const auto held = by == parked_by_.end() ? std::size_t{0} : by->second;
  if (held >= options_.parked_per_peer_max
      || (held == 0 && parked_by_.size() >= options_.parking_peers_max))
    return refuse(name, frame, frame.slice, errc::queue_full,
                  std::to_string(held) + " requests of " + std::to_string(parked_by_.size())
                    + " peers wait here already");
  if (!o.waiting[frame.slice].insert({name, frame.attempt}).second)
    return; // a doubled request
  ++parked_by_[name];
  tell_at_ = std::min(tell_at_, clock::now() + options_.wait_every);
}

void weight_exchange::loop::send_slice(const std::string& name, const weight_frame& answer,
                                       kept_bytes bytes) {
  const auto size = bytes.bytes.size();
  const weight_frame head{.kind = weight_message::slice,
                          .update = answer.update,
                          .attempt = answer.attempt,
                          .slice = answer.slice};
  auto payload = lend(std::move(bytes));
  if (!tell_puller(name, head, &payload))
    return; // the puller is gone or does not read
  ++counts.slices_out;
  counts.bytes_out += size;
}

void weight_exchange::loop::send_parked(std::uint64_t update, std::uint32_t slice) {
  const auto it = offers_.find(update);
  if (it == offers_.end())
    return; // withdrawn while it is pulled
  const auto waits = it->second.waiting.extract(slice);
  if (waits.empty())
    return;
  const auto bytes = it->second.cargo->bytes_of_slice(slice);
  for (const auto& who : waits.mapped()) {
    if (--parked_by_[who.peer] == 0)
      parked_by_.erase(who.peer);
    if (bytes)
      send_slice(who.peer, {.update = update, .attempt = who.attempt, .slice = slice}, *bytes);
  }
}

void weight_exchange::loop::drop_parked(const std::string& name) {
  for (auto& [update, o] : offers_) {
    for (auto& [slice, peers] : o.waiting)
      std::erase_if(peers, [&](const auto& who) { return who.peer == name; });
    std::erase_if(o.waiting, [](const auto& entry) { return entry.second.empty(); });
  }
  parked_by_.erase(name);
}

void weight_exchange::loop::tell_waiting(clock::time_point now) {
  std::set<std::string> gone;
  for (const auto& [update, o] : offers_) {
    std::set<parked> told;
    for (const auto& [slice, peers] : o.waiting)
      told.insert(peers.begin(), peers.end());
    for (const auto& who : told)
      if (!tell_puller(who.peer,
                       {.kind = weight_message::wait, .update = update, .attempt = who.attempt},
                       nullptr))
        gone.insert(who.peer);
  }
  for (const auto& name : gone)
    drop_parked(name);
  tell_at_ = parked_by_.empty() ? clock::time_point::max() : now + options_.wait_every;
}

void weight_exchange::loop::refuse(const std::string& name, const weight_frame& to,
                                   std::uint32_t slice, errc code, std::string_view why) {
  zmq::message_t text{why.data(), why.size()};
  tell_puller(name,
              {.kind = weight_message::refused,
               .code = code,
               .update = to.update,
               .attempt = to.attempt,
               .slice = slice},
              &text);
}

bool weight_exchange::loop::tell_puller(const std::string& name, const weight_frame& frame,
                                        zmq::message_t* payload) {
  const auto head = encode(frame);
  return send_to_peer(router_, name, zmq::buffer(head), payload);
}

} // namespace rollcast
