#include "cluster/sim/drafting.hpp"

#include "cluster/sim/normal.hpp"
#include "engine/base/prng.hpp"
#include "engine/draft/speculator.hpp"

#include <algorithm>
#include <cmath>
#include <unordered_map>

namespace rollcast::sim {

namespace {

double worth_of(double survival, bool probe) {
  return probe ? survival * rollcast::probe_worth : survival;
}

} // namespace

drafting::drafting(const workload& batch, speculation how, std::uint64_t seed)
  : batch_(batch), how_(how), seed_(seed) {
  if (!on())
    return;
  std::unordered_map<std::uint64_t, std::uint32_t> places; // looked up, never walked
  for (std::uint32_t i = 0; i < batch.responses.size(); ++i) {
    const auto& r = batch.responses[i];
    const auto [it, fresh] =
      places.try_emplace(r.group, static_cast<std::uint32_t>(groups_.size()));
    if (fresh)
      groups_.emplace_back();
    groups_[it->second].members.push_back(i);
    group_of_.push_back(it->second);
    probe_.push_back(r.index == 0);
  }
  done_.resize(batch.responses.size());
  for (std::uint32_t level = 0; level <= acceptance_curve::levels; ++level)
    for (std::uint32_t place = 1; place <= acceptance_curve::chain_max; ++place)
      for (const bool probe : {false, true}) {
        const double survival = curve_.at(level, place).survival;
        by_survival_.push_back({worth_of(survival, probe), survival, level, probe});
      }
  by_worth_ = by_survival_;
  std::stable_sort(by_survival_.begin(), by_survival_.end(),
                   [](const rung& a, const rung& b) { return a.survival > b.survival; });
  std::stable_sort(by_worth_.begin(), by_worth_.end(),
                   [](const rung& a, const rung& b) { return a.worth > b.worth; });
}

void drafting::tell(std::uint32_t response, std::uint64_t context) {
  done_[response] = context - batch_.responses[response].prompt_tokens;
  ++groups_[group_of_[response]].version;
}

std::uint32_t drafting::level(std::uint32_t response) const {
  if (how_ == speculation::self)
    return 0;
  double siblings = 0;
  const auto own = static_cast<double>(done_[response]);
  for (const auto other : groups_[group_of_[response]].members) {
    if (other == response || done_[other] == 0)
      continue;
    const auto theirs = static_cast<double>(done_[other]);
    const bool complete = done_[other] == batch_.responses[other].output_tokens;
    siblings +=
      complete ? std::min(1.0, theirs / std::max(1.0, own)) : std::max(0.0, 1 - own / theirs);
  }
  return acceptance_curve::level(siblings);
}

std::uint32_t drafting::drafted(std::uint32_t level, bool probe, draft_bar bar) const {
  std::uint32_t out = 0;
  while (out < acceptance_curve::chain_max
         && worth_of(curve_.at(level, out + 1).survival, probe) >= bar.worth)
    ++out;
  return out;
}

double drafting::luck(std::uint32_t response, std::uint64_t position) const {
  prng mixed{seed_ ^ prng{response}.next()};
  const auto noise = prng{mixed.next() ^ position}.next();
  return normal_quantile((static_cast<double>(noise >> 11) + 0.5) * 0x1p-53);
}

double drafting::pace(double luck, std::uint32_t tokens, std::uint32_t level,
                      std::uint32_t drafted) const {
  const auto& gain = curve_.at(level, drafted);
  const double steps = std::max(1.0, tokens / gain.mean);
  return std::clamp(gain.mean + luck * gain.deviation / std::sqrt(steps), 1.0, drafted + 1.0);
}

draft_bar drafting::choose(const census& seats, double seconds, const cost_model& model) const {
  if (!by_budget())
    return {0}; // all that fits
  std::uint32_t rows = 0;
  for (const auto& [plain, probes] : seats)
    rows += plain + probes;
  std::vector<float> survivals;
  survivals.reserve(std::size_t{rows} * acceptance_curve::chain_max);
  for (const auto& r : by_survival_)
    survivals.insert(survivals.end(), seats[r.level][r.probe], static_cast<float>(r.survival));
  const auto most = static_cast<std::uint32_t>(survivals.size());
  // The first drafted row is dear, it makes the step one that verifies; the others are not.
  const double verifying = seconds + model.draft_step_s;
  const step_costs costs{{{rows, seconds},
                          {rows + 1, verifying + model.draft_row_s},
                          {rows + most, verifying + most * model.draft_row_s}},
                         {}};
  const auto chosen = choose_budget(survivals, rows, {.rows = rows}, costs);
  // The same number of rows, but by worth. Equals stand or fall together: by more than half.
  draft_bar bar;
  std::size_t taken = 0;
  for (const auto& r : by_worth_) {
    const auto count = seats[r.level][r.probe];
    if (2 * taken + count > 2 * chosen)
      break;
    taken += count;
    if (count > 0)
      bar.worth = r.worth;
  }
  return bar;
}

} // namespace rollcast::sim
