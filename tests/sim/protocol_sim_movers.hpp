#pragma once

#include "cluster/transport/kv_exchange.hpp"
#include "cluster/weights/weight_exchange.hpp"
#include "engine/base/prng.hpp"
#include "tests/sim/protocol_sim_net.hpp"

#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace rollcast::sim {

/// The data network of a simulated cluster: transfers of KV and of weights advance one stage at a
/// turn, and may be cut at each. Places are numbered: 0 is the scheduler, a worker's process is
/// its index + 1; a restarted process has the same endpoint and is another life.
class data_network {
public:
  /// How a transfer goes wrong, of a thousand turns each.
  struct faults {
    std::uint32_t cut = 0;     ///< It ends with nothing.
    std::uint32_t corrupt = 0; ///< A slice or an image comes with another bit.
  };
  struct counters {
    std::uint64_t images = 0;
    std::uint64_t refused = 0; ///< Pulls that the holder answered with an error.
    std::uint64_t cut = 0;
    std::uint64_t slices = 0;
    std::uint64_t redirected = 0;
  };

  explicit data_network(std::uint64_t seed) : rng_(seed) {}

  /// The movers of a process that begins its life; what its last life pulled is forgotten.
  std::unique_ptr<kv_mover> kv_of(std::size_t place);
  std::unique_ptr<weight_mover> weights_of(std::size_t place);
  /// How a process is asked for KV; null when it is gone.
  void serve(std::size_t place, std::function<void(const kv_request&, const kv_ticket&)> by);
  void end_life(std::size_t place);

  /// One stage of one transfer. @returns false if none can go on.
  bool turn(sim_time now);
  bool busy() const noexcept { return !kv_.empty() || !weights_.empty(); }
  /// Updates that a place still offers.
  std::size_t offers(std::size_t place) const;

  faults wrong;
  counters counts;

private:
  class kv_end;
  class weight_end;

  struct kv_transfer {
    std::uint64_t id = 0;
    std::size_t puller = 0;
    std::string endpoint;
    kv_request what;
    std::vector<token_id> tokens;
    kv_mover::done_function done;
    std::size_t holder = 0;  ///< Once it was asked.
    std::uint64_t asked = 0; ///< Its life then; 0: not yet.
    std::unique_ptr<result<kv_image>> outcome;
  };
  struct weight_transfer {
    std::size_t puller = 0;
    std::uint64_t update = 0;
    std::string endpoint;
    std::shared_ptr<weight_cargo> cargo;
    weight_mover::done_function done;
    std::optional<sim_time> silent_since;
    bool cancelled = false;
  };
  struct place {
    std::uint64_t life = 0;
    std::function<void(const kv_request&, const kv_ticket&)> serve;
    std::map<std::uint64_t, std::shared_ptr<const weight_cargo>> offers;
  };

  bool happens(std::uint32_t per_mille) { return rng_.below(1000) < per_mille; }
  bool can_turn(const kv_transfer& t) const;
  void turn(kv_transfer& t);
  bool can_turn(weight_transfer& t, sim_time now);
  void turn(weight_transfer& t, std::list<weight_transfer>::iterator at, sim_time now);
  std::optional<std::uint32_t> next_slice(const weight_transfer& t) const;
  void answer(std::uint64_t pull, result<std::shared_ptr<const kv_image>> image);
  static result<kv_image> check(const kv_transfer& t, kv_image image);

  prng rng_;
  std::map<std::size_t, place> places_;
  std::list<kv_transfer> kv_;
  std::list<weight_transfer> weights_;
  std::uint64_t last_pull_ = 0;
};

/// The endpoint of a place.
std::string endpoint_of_place(std::size_t place);

} // namespace rollcast::sim
