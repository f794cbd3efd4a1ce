#include "cluster/weights/weight_exchange_loop.hpp"

#include <algorithm>

namespace rollcast {
namespace {

/// How long an upstream that does not know an update yet is left alone: the same news reaches it
/// by another way, so it is a matter of milliseconds.
constexpr std::chrono::milliseconds again_after{20};

} // namespace

void weight_exchange::loop::on(pull_command& c) {
  const auto refuse_it = [&](errc code, const std::string& why) {
    ++counts.pulls_failed;
    c.done(fail(code, why));
  };
  if (pulls_.contains(c.update))
    return refuse_it(errc::batch_conflict,
                     "weight update " + std::to_string(c.update) + " is being pulled already");
  if (pulls_.size() >= options_.pulls_max)
    return refuse_it(errc::queue_full,
                     "already pulling " + std::to_string(pulls_.size()) + " weight updates");
  offer_command out{c.update, c.cargo};
  on(out);
  pull fresh;
  fresh.endpoint = std::move(c.endpoint);
  fresh.cargo = std::move(c.cargo);
  fresh.progress = std::move(c.progress);
  fresh.done = std::move(c.done);
  fresh.deadline = soon();
  auto& p = pulls_.emplace(c.update, std::move(fresh)).first->second;
  if (const auto connected = connect(p); !connected)
    return end_pull(c.update, connected);
  begin_attempt(p);
  want_slices(c.update, p);
}

void weight_exchange::loop::on(redirect_command& c) {
  const auto it = pulls_.find(c.update);
  if (it == pulls_.end())
    return;
  auto& p = it->second;
  p.endpoint = std::move(c.endpoint);
  p.deadline = soon();
  p.refused.reset();
  if (const auto connected = connect(p); !connected)
    return end_pull(c.update, connected);
  begin_attempt(p);
  want_slices(c.update, p);
}

void weight_exchange::loop::on(const cancel_command& c) {
  if (pulls_.contains(c.update))
    end_pull(c.update, fail(errc::cancelled, "the pull of weight update " + std::to_string(c.update)
                                               + " was cancelled"));
}

/// A socket of its own for each upstream: what an earlier one still sends is never heard.
result<void> weight_exchange::loop::connect(pull& p) {
  const auto bound = static_cast<int>(options_.idle_ms_max.count());
  try {
    p.socket = zmq::socket_t{context_, zmq::socket_type::dealer};
    p.socket.set(zmq::sockopt::linger, 0);
    p.socket.set(zmq::sockopt::maxmsgsize, std::int64_t{options_.slice_bytes_max} + 1024);
    p.socket.set(zmq::sockopt::reconnect_ivl, 50);
    p.socket.set(zmq::sockopt::reconnect_ivl_max, std::max(50, bound / 4));
    dial_within(p.socket, options_.keys);
    p.socket.connect(p.endpoint);
  } catch (const zmq::error_t& e) {
    return fail(errc::peer_lost,
                "cannot connect to the weight exchange at " + p.endpoint + ": " + e.what());
  }
  return {};
}

void weight_exchange::loop::begin_attempt(pull& p) {
  p.attempt = ++last_attempt_;
  p.asked.clear();
  p.forgotten.clear();
  p.next = 0;
  p.again = clock::time_point::max();
}

void weight_exchange::loop::hear_upstream(std::uint64_t update) {
  // A bounded number of messages a turn, so that those who pull from here get theirs.
  for (int turn = 0; turn < 4; ++turn) {
    const auto it = pulls_.find(update);
    if (it == pulls_.end())
      return;
    auto& p = it->second;
    zmq::message_t head;
    zmq::message_t payload;
    bool odd = false;
    try {
      if (!p.socket.recv(head, zmq::recv_flags::dontwait))
        return;
      if (head.more() && !p.socket.recv(payload, zmq::recv_flags::dontwait))
        return;
      for (bool more = payload.more(); more; odd = true) {
        zmq::message_t extra;
        more = p.socket.recv(extra, zmq::recv_flags::dontwait) && extra.more();
      }
    } catch (const zmq::error_t& e) {
      return end_pull(update, fail(errc::peer_lost, "lost " + p.endpoint + ": " + e.what()));
    }
    const auto frame = decode_weight_frame({head.data<std::byte>(), head.size()});
    if (!frame || odd) {
      ++counts.frames_rejected;
      continue;
    }
    if (frame->attempt == p.attempt && frame->update == update)
      hear_frame(update, p, *frame, payload);
  }
}

void weight_exchange::loop::hear_frame(std::uint64_t update, pull& p, const weight_frame& frame,
                                       const zmq::message_t& payload) {
  if (frame.kind == weight_message::slice) {
    p.deadline = soon();
    take_slice(update, p, frame.slice, payload);
  } else if (frame.kind == weight_message::wait) {
    p.deadline = soon();
  } else if (frame.kind == weight_message::refused) {
    take_refusal(update, p, frame, payload);
  } else {
    ++counts.frames_rejected;
  }
}

void weight_exchange::loop::take_slice(std::uint64_t update, pull& p, std::uint32_t slice,
                                       const zmq::message_t& payload) {
  p.refused.reset();
  if (p.asked.erase(slice) == 0) {
    ++counts.frames_rejected; // nobody asked for it
    return;
  }
  const auto taken = p.cargo->put(slice, {payload.data<std::byte>(), payload.size()});
  if (!taken)
    return end_pull(update,
                    fail(taken.error().code, "weight update " + std::to_string(update) + " from "
                                               + p.endpoint + ": " + taken.error().detail));
  if (*taken == weight_cargo::outcome::repeated) {
    ++counts.slices_repeated;
  } else {
    ++counts.slices_in;
    counts.bytes_in += payload.size();
  }
  if (*taken == weight_cargo::outcome::forgotten) {
    ++counts.tensors_refetched;
    const auto [first, count] = p.cargo->slices_of(slice);
    for (std::uint32_t i = 0; i < count; ++i)
      p.forgotten.push_back(first + i);
  } else {
    send_parked(update, slice);
  }
  if (p.progress)
    p.progress(p.cargo->bytes_here(), p.cargo->bytes_wanted());
  want_slices(update, p);
}

void weight_exchange::loop::take_refusal(std::uint64_t update, pull& p, const weight_frame& frame,
                                         const zmq::message_t& payload) {
  error why{frame.code == errc::ok ? errc::frame_malformed : frame.code,
            one_line("the weight exchange at " + p.endpoint
                     + " refused: " + payload.to_string().substr(0, 300)),
            {}};
  if (frame.code != errc::stale_epoch || frame.slice != no_slice)
    return end_pull(update, tl::unexpected(std::move(why)));
  p.refused = std::move(why); // it may hear of the update a little later than we did
  begin_attempt(p);
  p.again = clock::now() + again_after;
}

void weight_exchange::loop::want_slices(std::uint64_t update, pull& p) {
  while (p.asked.size() < options_.slices_in_flight) {
    const auto slice = next_lacking(p);
    if (!slice)
      break;
    const weight_frame frame{.kind = weight_message::want,
                             .update = update,
                             .attempt = p.attempt,
                             .slice = *slice,
                             .slice_bytes = p.cargo->slice_bytes(),
                             .manifest = p.cargo->manifest()};
    // A fresh connection has room for a thousand; one that is full has an upstream that does not
    // read, and the silence ends it.
    tell_upstream(p, frame);
    p.asked.insert(*slice);
  }
  if (p.asked.empty() && p.cargo->complete())
    end_pull(update, {});
}

std::optional<std::uint32_t> weight_exchange::loop::next_lacking(pull& p) const {
  if (!p.forgotten.empty()) {
    const auto slice = p.forgotten.front();
    p.forgotten.pop_front();
    return slice;
  }
  while (p.next < p.cargo->slices()) {
    const auto slice = p.next++;
    if (!p.cargo->has(slice) && !p.cargo->left_out(slice))
      return slice;
  }
  return std::nullopt;
}

void weight_exchange::loop::expire_pulls(clock::time_point now) {
  std::vector<std::uint64_t> due;
  for (const auto& [update, p] : pulls_)
    if (std::min(p.deadline, p.again) <= now)
      due.push_back(update);
  for (const auto update : due) {
    auto& p = pulls_.at(update);
    if (p.deadline > now) {
      p.again = clock::time_point::max();
      want_slices(update, p);
    } else if (p.refused) {
      end_pull(update, tl::unexpected(*p.refused));
    } else {
      end_pull(update, fail(errc::timed_out, "no weights from " + p.endpoint + " for "
                                               + std::to_string(options_.idle_ms_max.count())
                                               + " ms; " + std::to_string(p.cargo->bytes_here())
                                               + " of " + std::to_string(p.cargo->bytes_wanted())
                                               + " bytes of update " + std::to_string(update)
                                               + " are here"));
    }
  }
}

void weight_exchange::loop::end_pull(std::uint64_t update, result<void> how) {
  const auto it = pulls_.find(update);
  const auto done = std::move(it->second.done);
  pulls_.erase(it);
  ++(how ? counts.pulls_done : counts.pulls_failed);
  done(std::move(how));
}

bool weight_exchange::loop::tell_upstream(pull& p, const weight_frame& frame) {
  const auto bytes = encode(frame);
  try {
    return p.socket.send(zmq::buffer(bytes), zmq::send_flags::dontwait).has_value();
  } catch (const zmq::error_t&) {
    return false;
  }
}

} // namespace rollcast
