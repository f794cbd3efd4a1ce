#include "tests/sim/protocol_sim_movers.hpp"

#include "engine/base/hash.hpp"

#include <charconv>
#include <utility>

namespace rollcast::sim {
namespace {

constexpr auto silence_max = std::chrono::seconds{5};

std::size_t place_of(const std::string& endpoint) {
  std::size_t place = 0;
  const auto digits = endpoint.find_last_of('/') + 1;
  std::from_chars(endpoint.data() + digits, endpoint.data() + endpoint.size(), place);
  return place;
}

} // namespace

std::string endpoint_of_place(std::size_t place) {
  return "sim://" + std::to_string(place);
}

// -- what processes hold --------------------------------------------------------------------------

class data_network::kv_end final : public kv_mover {
public:
  kv_end(data_network& net, std::size_t place) : net_(net), place_(place) {}
  std::uint64_t pull(std::string endpoint, const kv_request& request, std::vector<token_id> tokens,
                     done_function done) override {
    auto& t = net_.kv_.emplace_back();
    t.id = ++net_.last_pull_;
    t.puller = place_;
    t.endpoint = std::move(endpoint);
    t.what = request;
    t.tokens = std::move(tokens);
    t.done = std::move(done);
    return t.id;
  }
  void cancel(std::uint64_t pull) override {
    for (auto& t : net_.kv_)
      if (t.id == pull)
        t.outcome = std::make_unique<result<kv_image>>(fail(errc::cancelled, "cancelled"));
  }
  void answer(const kv_ticket& ticket, result<std::shared_ptr<const kv_image>> image) override {
    net_.answer(ticket.pull, std::move(image));
  }

private:
  data_network& net_;
  std::size_t place_;
};

class data_network::weight_end final : public weight_mover {
public:
  weight_end(data_network& net, std::size_t place)
    : net_(net), place_(place), endpoint_(endpoint_of_place(place)) {}
  const std::string& endpoint() const noexcept override { return endpoint_; }
  void offer(std::uint64_t update, std::shared_ptr<const weight_cargo> cargo) override {
    net_.places_[place_].offers[update] = std::move(cargo);
  }
  void withdraw(std::uint64_t update) override { net_.places_[place_].offers.erase(update); }
  void pull(std::uint64_t update, std::string endpoint, std::shared_ptr<weight_cargo> cargo,
            progress_function, done_function done) override {
    offer(update, cargo);
    net_.weights_.push_back(
      {place_, update, std::move(endpoint), std::move(cargo), std::move(done), {}, false});
  }
  void redirect(std::uint64_t update, std::string endpoint) override {
    for (auto& t : net_.weights_)
      if (t.puller == place_ && t.update == update) {
        t.endpoint = endpoint;
        t.silent_since.reset();
        ++net_.counts.redirected;
      }
  }
  void cancel(std::uint64_t update) override {
    for (auto& t : net_.weights_)
      if (t.puller == place_ && t.update == update)
        t.cancelled = true;
  }

private:
  data_network& net_;
  std::size_t place_;
  std::string endpoint_;
};

std::unique_ptr<kv_mover> data_network::kv_of(std::size_t place) {
  return std::make_unique<kv_end>(*this, place);
}

std::unique_ptr<weight_mover> data_network::weights_of(std::size_t place) {
  return std::make_unique<weight_end>(*this, place);
}

void data_network::serve(std::size_t place,
                         std::function<void(const kv_request&, const kv_ticket&)> by) {
  ++places_[place].life;
  places_[place].serve = std::move(by);
}

void data_network::end_life(std::size_t place) {
  places_[place].serve = nullptr;
  places_[place].offers.clear();
  std::erase_if(kv_, [&](const auto& t) { return t.puller == place; });
  std::erase_if(weights_, [&](const auto& t) { return t.puller == place; });
}

std::size_t data_network::offers(std::size_t place) const {
  const auto it = places_.find(place);
  return it == places_.end() ? 0 : it->second.offers.size();
}

bool data_network::turn(sim_time now) {
  std::vector<kv_transfer*> kv;
  for (auto& t : kv_)
    if (can_turn(t))
      kv.push_back(&t);
  std::vector<std::list<weight_transfer>::iterator> weights;
  for (auto it = weights_.begin(); it != weights_.end(); ++it)
    if (can_turn(*it, now))
      weights.push_back(it);
  if (kv.empty() && weights.empty())
    return false;
  const auto chosen = rng_.below(kv.size() + weights.size());
  if (chosen < kv.size())
    turn(*kv[chosen]);
  else
    turn(*weights[chosen - kv.size()], weights[chosen - kv.size()], now);
  return true;
}

// -- KV -------------------------------------------------------------------------------------------

/// What the real puller checks before it believes an image.
result<kv_image> data_network::check(const kv_transfer& t, kv_image image) {
  const auto& m = image.manifest;
  if (m.response != t.what.response || m.tokens == 0 || m.tokens > t.tokens.size()
      || hash_of(std::span{t.tokens}.first(m.tokens)) != m.prefix
      || hash_bytes(image.bytes) != m.content)
    return fail(errc::frame_malformed, "it belongs to other tokens, or came torn");
  return image;
}

bool data_network::can_turn(const kv_transfer& t) const {
  if (t.outcome || t.asked == 0)
    return true;
  const auto& holder = places_.at(t.holder); // one that died does not answer
  return !holder.serve || holder.life != t.asked;
}

void data_network::turn(kv_transfer& t) {
  if (t.outcome) {
    const auto done = std::move(t.done);
    auto outcome = std::move(*t.outcome);
    if (outcome && happens(wrong.cut)) {
      outcome = fail(errc::peer_lost, "the connection broke");
      ++counts.cut;
    }
    if (outcome && happens(wrong.corrupt) && !outcome->bytes.empty())
      outcome->bytes[rng_.below(outcome->bytes.size())] ^= std::byte{1};
    if (outcome) {
      outcome = check(t, std::move(*outcome));
      ++counts.images;
    }
    kv_.remove_if([&](const auto& other) { return &other == &t; });
    return done(std::move(outcome));
  }
  t.holder = place_of(t.endpoint);
  auto& holder = places_[t.holder];
  if (t.asked != 0 || !holder.serve || happens(wrong.cut)) {
    ++counts.cut;
    t.outcome = std::make_unique<result<kv_image>>(fail(errc::timed_out, "no KV came"));
    return;
  }
  t.asked = holder.life;
  holder.serve(t.what, kv_ticket{"sim", t.id});
}

void data_network::answer(std::uint64_t pull, result<std::shared_ptr<const kv_image>> image) {
  for (auto& t : kv_)
    if (t.id == pull && !t.outcome) {
      if (image)
        t.outcome = std::make_unique<result<kv_image>>(**image);
      else
        t.outcome = std::make_unique<result<kv_image>>(fail(image));
      counts.refused += !image;
    }
}

// -- weights --------------------------------------------------------------------------------------

/// A slice that the upstream has and the puller lacks.
std::optional<std::uint32_t> data_network::next_slice(const weight_transfer& t) const {
  const auto upstream = places_.find(place_of(t.endpoint));
  if (upstream == places_.end())
    return {};
  const auto offer = upstream->second.offers.find(t.update);
  if (offer == upstream->second.offers.end() || offer->second->manifest() != t.cargo->manifest())
    return {};
  for (std::uint32_t s = 0; s < t.cargo->slices(); ++s)
    if (!t.cargo->has(s) && !t.cargo->left_out(s) && offer->second->bytes_of_slice(s))
      return s;
  return {};
}

bool data_network::can_turn(weight_transfer& t, sim_time now) {
  if (t.cancelled || t.cargo->complete() || next_slice(t))
    return true;
  if (!t.silent_since)
    t.silent_since = now;
  return now >= *t.silent_since + silence_max;
}

void data_network::turn(weight_transfer& t, std::list<weight_transfer>::iterator at, sim_time now) {
  const auto end = [&](result<void> how) {
    const auto done = std::move(t.done);
    weights_.erase(at);
    done(std::move(how));
  };
  if (t.cancelled)
    return end(fail(errc::cancelled, "cancelled"));
  if (t.cargo->complete())
    return end({});
  if (happens(wrong.cut)) {
    ++counts.cut;
    return end(fail(errc::timed_out, "the upstream fell silent"));
  }
  const auto slice = next_slice(t);
  if (!slice)
    return end(fail(errc::timed_out, "the upstream has nothing to give"));
  t.silent_since = now;
  const auto offer = places_.at(place_of(t.endpoint)).offers.at(t.update);
  const auto bytes = offer->bytes_of_slice(*slice)->bytes;
  std::vector<std::byte> copy{bytes.begin(), bytes.end()};
  if (happens(wrong.corrupt))
    copy[rng_.below(copy.size())] ^= std::byte{1};
  ++counts.slices;
  if (auto put = t.cargo->put(*slice, copy); !put)
    end(fail(put));
}

} // namespace rollcast::sim
