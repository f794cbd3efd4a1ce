#pragma once

#include "cluster/wire/messages.hpp"
#include "engine/step/engine.hpp"
#include "tests/unit/actors/fake_backend.hpp"

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>

namespace rollcast::sim {

/// Values of the two tensors of a fake device.
using epoch_values = std::array<std::uint64_t, 2>;

/// What every epoch holds and therefore says: one plain engine for each, which runs a response
/// alone. Everything that a simulated cluster delivers is compared with it.
class sim_truth {
public:
  /// An epoch is served with these weights. @returns what is wrong, "" for nothing: a number that
  /// named other weights before.
  std::string serves(std::uint64_t epoch, const epoch_values& values);
  const epoch_values* values(std::uint64_t epoch) const;

  /// Compares a result with what its epochs say. @returns what is wrong.
  std::string check(const wire::submit_batch& batch, const wire::response_ready& r);
  /// Compares log-probabilities with those of the epoch.
  std::string check(const wire::score& asked, const wire::scored& r);

private:
  struct oracle {
    epoch_values values{};
    std::unique_ptr<engine> device;
  };
  engine* device_of(std::uint64_t epoch);
  std::string check_span(const wire::prompt_group& group, const wire::sampling_params& sampling,
                         const wire::response_ready& r, const wire::weight_span& span,
                         std::optional<std::uint32_t> experts_from, std::string& experts);

  std::map<std::uint64_t, oracle> epochs_;
  std::uint64_t last_response_ = 0;
};

} // namespace rollcast::sim
