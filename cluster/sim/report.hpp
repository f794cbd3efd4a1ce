#pragma once

#include "cluster/sim/simulation.hpp"

#include <nlohmann/json.hpp>

#include <string>
#include <vector>

namespace rollcast::sim {

/// The figures of one run, by the names of `rollcast simulate` (README.md lists them).
nlohmann::ordered_json figures_of(const workload& batch, const sim_result& run);

/// The mean of each figure over runs, and with more than one run a member `spread`: smallest,
/// largest and sample standard deviation of each. @pre not empty, equal keys
nlohmann::ordered_json mean_figures(const std::vector<nlohmann::ordered_json>& runs);

/// An SVG of the responses that run on each worker over time, one band a worker, one scale for
/// all; the tail (at most a tenth unfinished) is shaded. `title` is escaped.
/// @pre run.timeline was recorded
std::string plot_svg(const sim_result& run, const std::string& title);

} // namespace rollcast::sim
