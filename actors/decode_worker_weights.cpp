#include "actors/bytes.hpp"
#include "actors/decode_worker_shell.hpp"
#include "actors/error_bridge.hpp"
#include "engine/base/memory_guard.hpp"
#include "engine/model/tensor_source.hpp"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <bit>
#include <map>
#include <utility>

namespace rollcast::worker_shell {
namespace {

using preparation = decode_worker_state::preparation;

void tell(self_ptr self, std::uint64_t update, weight_news_kind kind, weight_news news = {}) {
  auto& st = self->state;
  if (!st.scheduler || st.id == worker_id{})
    return;
  news.worker = st.id;
  news.update = update;
  news.kind = static_cast<std::uint8_t>(kind);
  self->send(st.scheduler, atom::weights_v, std::move(news));
}

void refuse(self_ptr self, const error& why) {
  const auto update = self->state.preparing->order.update;
  spdlog::warn("weights of epoch {} are refused: {}", self->state.preparing->order.epoch,
               why.detail);
  forget_preparation(self);
  weight_news news;
  news.code = static_cast<std::uint8_t>(why.code);
  news.why = why.detail;
  tell(self, update, weight_news_kind::refused, std::move(news));
}

void tell_prepared(self_ptr self) {
  const auto& p = *self->state.preparing;
  weight_news news;
  news.hash = p.ready->hash();
  news.bytes = p.cargo ? p.cargo->bytes_wanted() : 0;
  spdlog::info("weights of epoch {} are prepared: {} bytes pulled, hash {}", p.order.epoch,
               news.bytes, to_string(news.hash));
  tell(self, p.order.update, weight_news_kind::prepared, std::move(news));
}

/// What the tensors of an order go over: null if they are all that is needed, or cannot be laid
/// over what is served because a type or shape changes.
std::shared_ptr<const device_weights> base_of(const decode_worker_state& st,
                                              const weight_order& order) {
  auto served = st.parts.device->device().weights();
  if (!order.complete)
    return order.whole && st.base ? st.base : served;
  std::map<std::string_view, const tensor_info*> sent;
  for (const auto& t : order.tensors)
    sent.emplace(t.name, &t);
  const auto ours = served->tensors();
  const bool alike = std::all_of(ours.begin(), ours.end(), [&](const tensor_info& t) {
    const auto it = sent.find(t.name);
    return it != sent.end() && it->second->type == t.type && it->second->shape == t.shape;
  });
  return alike ? served : nullptr;
}

void start_pull(self_ptr self, preparation& p, const std::string& upstream) {
  p.pulling = true;
  const auto me = caf::actor_cast<decode_worker_actor>(self);
  self->state.parts.weights->pull(
    p.order.update, upstream, p.cargo, {}, [me, number = p.number](result<void> how) {
      caf::anon_send(me, weights_pulled{number, std::make_shared<result<void>>(std::move(how))});
    });
}

/// Within which bytes of an update must come by the group: longer than its members wait for
/// anything. Their own limits are no help if the thread hangs that keeps them.
constexpr auto group_patience = std::chrono::seconds{60};

void look_again(self_ptr self, preparation& p) {
  p.came = p.cargo->bytes_here();
  self->delayed_send(self, group_patience, weights_pulled{p.number, nullptr, true});
}

/// Has the tensors come the way that the order says.
void start_transfer(self_ptr self, preparation& p) {
  auto& parts = self->state.parts;
  if (parts.collectives && p.order.way == weight_way::waits) {
    p.waiting = true;
    parts.weights->offer(p.order.update, p.cargo); // somebody may be told to pull it from here
    look_again(self, p);
    const auto me = caf::actor_cast<decode_worker_actor>(self);
    return parts.collectives->await_weights(
      p.order.update, p.order.group_epoch, p.cargo, [me, number = p.number](result<void> how) {
        caf::anon_send(me, weights_pulled{number, std::make_shared<result<void>>(how), true});
      });
  }
  start_pull(self, p, p.order.upstream);
  if (parts.collectives && p.order.way == weight_way::casts)
    parts.collectives->cast_weights(p.order.update, p.order.group_epoch, p.cargo);
}

/// Whether weights hold that very tensor.
bool has(const std::shared_ptr<const device_weights>& weights, const tensor_info& tensor) {
  if (!weights)
    return false;
  const auto all = weights->tensors(); // in name order
  const auto at =
    std::lower_bound(all.begin(), all.end(), tensor,
                     [](const tensor_info& x, const tensor_info& y) { return x.name < y.name; });
  return at != all.end() && *at == tensor;
}

/// Makes the cargo that lacks what differs from `p.over`.
result<void> start_cargo(decode_worker_state& st, preparation& p) {
  const auto wanted = [&](const tensor_info& t) { return !has(p.over, t); };
  if (p.over && std::none_of(p.order.tensors.begin(), p.order.tensors.end(), wanted)) {
    p.ready = p.over;
    return {};
  }
  auto cargo = weight_cargo::expecting(p.order.tensors, p.order.slice_bytes, wanted,
                                       weight_bytes_max, st.weight_memory);
  if (!cargo)
    return fail(cargo);
  p.cargo = std::move(*cargo);
  return {};
}

/// Checks and packs what was pulled.
result<std::shared_ptr<const device_weights>>
pack(const engine& device, const weight_cargo& cargo, const weight_order& order,
     const std::shared_ptr<const device_weights>& over, std::size_t threads,
     const std::stop_token& stop) {
  tensor_set tensors{"update to epoch " + std::to_string(order.epoch)};
  for (const auto& t : cargo.tensors()) {
    auto content = cargo.tensor(t.name);
    if (!content && has(over, t))
      continue; // it was never wanted: what it goes over has it
    if (!content)
      return fail(content);
    if (auto added = tensors.add({t.name, t.type, t.shape, content->bytes, t.hash}, content->owner);
        !added)
      return fail(added);
  }
  return device.device().prepare_weights(tensors, over, {threads, order.allow_non_finite, stop});
}

/// Gives up the KV of a response that waits: it can be computed again. @returns false if none
/// waits, or all of it would not make room.
bool give_up_parked(self_ptr self, const std::vector<score_request>& wanted) {
  auto& st = self->state;
  const auto kv = st.parts.device->kv();
  const auto room =
    std::uint64_t{kv.free + kv.parked} * st.parts.device->device().shape().block_tokens;
  if (std::any_of(wanted.begin(), wanted.end(), [&](const score_request& s) {
        return s.tokens.size() > room + 1; // the last token is only looked up
      }))
    return false;
  const auto it = std::find_if(st.responses.begin(), st.responses.end(),
                               [&](const auto& r) { return st.parts.device->parked(r.first); });
  if (it == st.responses.end())
    return false;
  const auto [response, attempt] = std::pair{it->first, it->second.attempt};
  drop(self, response, attempt);
  self->send(st.scheduler, atom::lost_v, st.id, response, attempt);
  return true;
}

/// Pulls what the group does not bring. What it has brought is let go with its cargo: its thread
/// may wake up and write to that. So there may be twice the update in host memory.
void give_up_group(self_ptr self, preparation& p) {
  auto& st = self->state;
  st.parts.collectives->forget_weights(p.order.update);
  p.waiting = false;
  const auto started = unless_memory_lacks("the tensors of epoch " + std::to_string(p.order.epoch),
                                           [&] { return start_cargo(st, p); });
  if (!started)
    return refuse(self, started.error());
  spdlog::warn("weights of epoch {} are pulled, the group does nothing", p.order.epoch);
  st.parts.metrics->collective_fallbacks.weights.add();
  st.voice.prepares(p.order.update, p.cargo);
  start_pull(self, p, p.order.upstream);
}

} // namespace

void forget_preparation(self_ptr self) {
  auto& st = self->state;
  if (!st.preparing)
    return;
  if (st.preparing->cargo) {
    st.parts.weights->cancel(st.preparing->order.update);
    st.parts.weights->withdraw(st.preparing->order.update);
    if (st.parts.collectives)
      st.parts.collectives->forget_weights(st.preparing->order.update);
  }
  st.packer.request_stop();
  st.voice.prepares(0);
  st.preparing.reset();
}

void prepare(self_ptr self, const weight_order& order) {
  auto& st = self->state;
  forget_preparation(self);
  st.previous.reset();
  // A new update of the fleet: nobody goes back to the epoch before the one served any more. A
  // worker that is not admitted serves something else than the fleet, and may need its base yet.
  if (!order.whole && st.base_covered && st.parts.pulse->current)
    st.base.reset();
  auto& p = st.preparing.emplace();
  p.number = ++st.preparations;
  p.order = order;
  p.over = base_of(st, order);
  const auto started = unless_memory_lacks("the tensors of epoch " + std::to_string(order.epoch),
                                           [&] { return start_cargo(st, p); });
  const bool waits = started && !p.ready && order.way == weight_way::waits;
  if (st.parts.collectives && !waits) // or the group would wait for it a while
    st.parts.collectives->forget_weights(order.update);
  if (st.parts.collectives && order.way == weight_way::casts && (!started || p.ready))
    st.parts.collectives->cast_weights(order.update, order.group_epoch, nullptr);
  if (!started)
    return refuse(self, started.error());
  st.voice.prepares(order.update, p.cargo);
  if (p.ready)
    return tell_prepared(self);
  start_transfer(self, p);
}

void redirect(self_ptr self, std::uint64_t update, const std::string& upstream) {
  auto& st = self->state;
  if (!st.preparing || st.preparing->order.update != update || st.preparing->ready)
    return;
  st.preparing->order.upstream = upstream;
  if (st.preparing->pulling)
    st.parts.weights->redirect(update, upstream);
  else if (st.preparing->waiting)
    return; // if it does not come, it is pulled from there
  else if (!st.preparing->cargo->complete())
    start_pull(self, *st.preparing, upstream);
}

void end_weight_pull(self_ptr self, const weights_pulled& outcome) {
  auto& st = self->state;
  if (!st.preparing || st.preparing->number != outcome.preparation
      || !(outcome.cast ? st.preparing->waiting : st.preparing->pulling))
    return; // forgotten meanwhile
  auto& p = *st.preparing;
  if (!outcome.how)
    return p.cargo->bytes_here() != p.came ? look_again(self, p) : give_up_group(self, p);
  p.pulling = p.waiting = false;
  if (outcome.cast && !*outcome.how) {
    spdlog::warn("weights of epoch {} are pulled, the group did not bring them: {}", p.order.epoch,
                 outcome.how->error().detail);
    st.parts.metrics->collective_fallbacks.weights.add();
    return start_pull(self, p, p.order.upstream);
  }
  if (!*outcome.how) {
    spdlog::warn("weights of epoch {} do not come: {}", p.order.epoch, outcome.how->error().detail);
    return tell(self, p.order.update, weight_news_kind::upstream_failed);
  }
  const auto me = caf::actor_cast<decode_worker_actor>(self);
  auto work = [me, number = p.number, device = st.parts.device, cargo = p.cargo, order = p.order,
               over = p.over, threads = st.options.weight_threads](const std::stop_token& stop) {
    auto packed = std::make_shared<result<std::shared_ptr<const device_weights>>>(
      unless_memory_lacks("the weights of epoch " + std::to_string(order.epoch),
                          [&] { return pack(*device, *cargo, order, over, threads, stop); }));
    caf::anon_send(me, weights_packed{number, std::move(packed)});
  };
  if (st.parts.aside)
    return st.parts.aside([work = std::move(work)] { work({}); });
  // The one before was told to stop when its preparation was forgotten, and does within
  // milliseconds; so memory for one second buffer is enough.
  st.packer = std::jthread{std::move(work)};
}

void end_packing(self_ptr self, const weights_packed& outcome) {
  auto& st = self->state;
  if (!st.preparing || st.preparing->number != outcome.preparation)
    return;
  if (!*outcome.weights)
    return refuse(self, outcome.weights->error());
  st.preparing->ready = **outcome.weights;
  tell_prepared(self);
}

void flip(self_ptr self, std::uint64_t update, std::uint64_t epoch, bool back) {
  auto& st = self->state;
  const bool held = back ? st.previous && st.previous->epoch == epoch
                         : st.preparing && st.preparing->order.update == update
                             && st.preparing->order.epoch == epoch && st.preparing->ready;
  if (!held)
    return lose_scheduler(
      self, {errc::stale_epoch,
             "told to serve epoch " + std::to_string(epoch) + ", which is not held here",
             {}});
  // No chunk runs anywhere; what is parked was computed by other weights.
  while (!st.responses.empty()) {
    const auto [response, h] = *st.responses.begin();
    drop(self, response, UINT32_MAX);
    self->send(st.scheduler, atom::lost_v, st.id, response, h.attempt);
  }
  auto next = back ? st.previous->weights : st.preparing->ready;
  auto now = st.parts.device->device().weights();
  if (auto used = st.parts.device->use_weights(std::move(next)); !used)
    return lose_scheduler(self, used.error());
  const auto* order = back ? nullptr : &st.preparing->order;
  st.base_covered = order != nullptr && (order->complete || (st.base_covered && !order->whole));
  st.previous = {st.epoch, std::move(now)};
  st.epoch = epoch;
  forget_preparation(self);
  st.parts.metrics->weight_epoch.set(static_cast<double>(epoch));
  spdlog::info("serving epoch {}", epoch);
  tell(self, update, weight_news_kind::flipped);
}

caf::result<std::string> score(self_ptr self, const score_order& order) {
  auto& st = self->state;
  std::shared_ptr<const device_weights> at;
  if (order.epoch != st.epoch && st.previous && st.previous->epoch == order.epoch)
    at = st.previous->weights;
  if (order.worker != st.id || (order.epoch != st.epoch && !at))
    return to_caf(errc::stale_epoch, "epoch " + std::to_string(order.epoch) + " is not held, epoch "
                                       + std::to_string(st.epoch) + " is served");
  std::vector<std::vector<token_id>> tokens;
  std::vector<score_request> wanted;
  tokens.reserve(order.sequences.size());
  for (const auto& s : order.sequences) {
    tokens.push_back(from_bytes<token_id>(s.tokens));
    wanted.push_back({tokens.back(), s.prompt_tokens, std::bit_cast<float>(s.temperature_bits)});
  }
  const herald::busy held{st.voice};
  std::vector<std::vector<float>> logprobs;
  auto scored = st.parts.device->score(wanted, logprobs, at);
  // What is parked may stay so for as long as serving is paused.
  while (!scored && scored.error().code == errc::out_of_kv_blocks && give_up_parked(self, wanted))
    scored = st.parts.device->score(wanted, logprobs, at);
  if (!scored)
    return to_caf(scored.error());
  std::string all;
  for (const auto& row : logprobs)
    all += to_bytes(std::span<const float>{row});
  return all;
}

void tell_progress(self_ptr self) {
  const auto& p = self->state.preparing;
  if (!p || p->ready)
    return;
  weight_news news;
  news.bytes = p->cargo ? p->cargo->bytes_here() : 0;
  tell(self, p->order.update, weight_news_kind::progressed, std::move(news));
}

} // namespace rollcast::worker_shell
