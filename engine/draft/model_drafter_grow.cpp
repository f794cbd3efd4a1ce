#include "engine/draft/model_drafter.hpp"

#include <algorithm>
#include <chrono>
#include <numeric>

namespace rollcast {

// -- one place ----------------------------------------------------------------

kernels::sample_params model_drafter::noise_at(const draft_seat& seat, std::uint32_t ahead) const {
  auto noise = seat.noise;
  noise.position += ahead;
  if (ahead >= seat.banned_for)
    noise.banned_count = 0;
  return noise;
}

/// Adds what a logit row proposes behind a node (-1: the response's last token).
void model_drafter::add_children(grower& g, std::int32_t parent, std::uint32_t parent_beam,
                                 std::size_t logit_row, std::uint32_t state) {
  const std::size_t vocabulary = model_.device->shape().vocabulary;
  const auto above = static_cast<std::size_t>(parent);
  const auto depth = parent < 0 ? 0 : g.nodes[above].depth + 1;
  const auto survival = parent < 0 ? 1.0f : g.nodes[above].survival;
  chooser_.choose(model_.device->logits().subspan(logit_row * vocabulary, vocabulary),
                  noise_at(*g.seat, depth), options_.topk, proposed_);
  for (const auto& p : proposed_)
    g.nodes.push_back({{p.token, parent, p.probability},
                       depth,
                       survival * acceptance_.chance(depth, p.probability, p.probability),
                       parent_beam,
                       state});
}

/// The best of the latest nodes are what the next step goes on from.
void model_drafter::choose_beams(grower& g, std::size_t first_child) {
  g.beams.clear();
  for (auto i = first_child; i < g.nodes.size(); ++i)
    if (g.nodes[i].survival >= options_.survival_min)
      g.beams.push_back({static_cast<std::uint32_t>(i), g.nodes[i].beam, g.nodes[i].state});
  std::stable_sort(g.beams.begin(), g.beams.end(), [&](const beam& a, const beam& b) {
    return g.nodes[a.node].survival > g.nodes[b.node].survival;
  });
  if (g.beams.size() > options_.topk)
    g.beams.resize(options_.topk);
}

void model_drafter::begin_draft(grower& g, std::size_t logit_row, std::size_t row) {
  const auto state = model_.device->states().subspan(row * model_.own_width, model_.own_width);
  const auto at = static_cast<std::uint32_t>(own_states_.size() / model_.own_width);
  own_states_.insert(own_states_.end(), state.begin(), state.end());
  g.nodes.clear();
  add_children(g, -1, 0, logit_row, at);
  choose_beams(g, 0);
}

// -- further places -----------------------------------------------------------

/// Paths of a tree write their KV into blocks of their own, in turn into one set and the other,
/// from that of the first drafted position on.
bool model_drafter::take_path_blocks(grower& g) {
  const auto block = model_.device->shape().block_tokens;
  const auto first = g.of->rows / block;
  g.path_blocks = (g.of->rows + options_.steps - 1) / block - first + 1;
  return pool_.take(2 * options_.topk * g.path_blocks, g.blocks);
}

/// The block table of a path that grows, with the copies that bring what is before it there.
const std::uint32_t* model_drafter::path_table(grower& g, std::size_t beam, std::uint32_t depth) {
  const auto& of = g.of->blocks;
  if (options_.topk == 1)
    return of.data();
  const auto block = model_.device->shape().block_tokens;
  const auto base = g.of->rows;
  const auto first = base / block;
  const auto path = [&](std::uint32_t turn, std::size_t which) {
    return g.blocks.data() + (turn % 2 * options_.topk + which) * g.path_blocks;
  };
  const std::uint32_t* const own = path(depth, beam);
  const std::uint32_t* const from =
    depth == 1 ? of.data() + first : path(depth - 1, g.beams[beam].parent);
  const auto written = base + depth - 1; // positions before this one
  for (auto at = first; at * block < written; ++at)
    pass_.copies.push_back(
      {from[at - first], own[at - first], 0, std::min(block, written - at * block)});
  auto& table = pass_.tables.emplace_back(of.begin(), of.begin() + first);
  table.insert(table.end(), own, own + g.path_blocks);
  return table.data();
}

void model_drafter::add_path_rows(grower& g, std::uint32_t depth) {
  const auto position = g.of->rows + depth - 1;
  for (std::size_t b = 0; b < g.beams.size(); ++b) {
    const std::uint32_t* const table = path_table(g, b, depth);
    const auto row = static_cast<std::uint32_t>(pass_.tokens.size());
    pass_.tokens.push_back(g.nodes[g.beams[b].node].given.token);
    pass_.places.push_back({position, table[position / model_.device->shape().block_tokens]});
    pass_.sequences.push_back({table, row, 1, position});
    pass_.logit_rows.push_back(row);
    const auto state =
      own_states_.begin() + static_cast<std::ptrdiff_t>(g.beams[b].state * model_.own_width);
    pass_.taken.insert(pass_.taken.end(), state,
                       state + static_cast<std::ptrdiff_t>(model_.own_width));
  }
}

/// One pass over all paths that grow. @returns false if there are none.
bool model_drafter::grow(std::uint32_t depth) {
  const auto& shape = model_.device->shape();
  const auto rows_max = std::min(shape.rows_max, shape.logit_rows_max);
  pass_.clear();
  for (std::size_t i = 0; i < growing_; ++i) {
    auto& g = growers_[i];
    const bool room = depth < g.seat->room && pass_.tokens.size() + g.beams.size() <= rows_max;
    if (!room || (options_.topk > 1 && depth == 1 && !g.beams.empty() && !take_path_blocks(g)))
      g.beams.clear();
    add_path_rows(g, depth);
  }
  if (pass_.tokens.empty())
    return false;
  run_pass(true);
  next_states_.assign(model_.device->states().begin(), model_.device->states().end());
  own_states_.swap(next_states_);
  std::uint32_t row = 0;
  for (std::size_t i = 0; i < growing_; ++i) {
    auto& g = growers_[i];
    const auto first_child = g.nodes.size();
    for (std::uint32_t b = 0; b < g.beams.size(); ++b, ++row)
      add_children(g, static_cast<std::int32_t>(g.beams[b].node), b, row, row);
    choose_beams(g, first_child);
  }
  return true;
}

// -- what of it is verified ---------------------------------------------------

/// Keeps each response's best nodes, then of all as many as there are rows for, or as pay.
void model_drafter::keep_best(std::size_t seats, const step_load& load, const step_costs* costs) {
  ranked_.clear();
  for (std::size_t i = 0; i < growing_; ++i) {
    auto& nodes = growers_[i].nodes;
    const auto begin = ranked_.size();
    for (std::uint32_t n = 0; n < nodes.size(); ++n)
      if (nodes[n].survival >= options_.survival_min)
        ranked_.push_back({nodes[n].survival, static_cast<std::uint32_t>(i), n});
    std::stable_sort(ranked_.begin() + static_cast<std::ptrdiff_t>(begin), ranked_.end(),
                     [](const rank& a, const rank& b) { return a.survival > b.survival; });
    ranked_.resize(std::min<std::size_t>(ranked_.size(), begin + options_.tokens - 1));
  }
  // No node survives more often than its parent, which comes before it: so prefixes are trees.
  std::stable_sort(ranked_.begin(), ranked_.end(),
                   [](const rank& a, const rank& b) { return a.survival > b.survival; });
  ranked_.resize(std::min<std::size_t>(ranked_.size(), load.rows_free));
  if (costs == nullptr)
    return;
  survivals_.clear();
  for (const auto& r : ranked_)
    survivals_.push_back(r.survival);
  ranked_.resize(choose_budget(survivals_, static_cast<std::uint32_t>(seats), load, *costs, 0.0));
}

void model_drafter::write() {
  for (const auto& r : ranked_)
    growers_[r.grower].nodes[r.node].kept = true;
  for (std::size_t i = 0; i < growing_; ++i) {
    auto& g = growers_[i];
    auto& draft = *g.seat->draft;
    places_.assign(g.nodes.size(), -1);
    for (std::size_t n = 0; n < g.nodes.size(); ++n) {
      if (!g.nodes[n].kept)
        continue;
      auto given = g.nodes[n].given;
      if (given.parent >= 0)
        given.parent = places_[static_cast<std::size_t>(given.parent)];
      places_[n] = static_cast<std::int32_t>(draft.size());
      draft.push_back(given);
    }
    if (draft.empty())
      continue;
    ++figures_.drafts;
    drafted_.insert(g.seat->response);
  }
}

void model_drafter::draft(std::span<const draft_seat> seats, const step_load& load) {
  draft(seats, load, options_.steps, nullptr);
}

void model_drafter::draft(std::span<const draft_seat> seats, const step_load& load,
                          std::uint32_t steps, const step_costs* costs) {
  const auto begin = std::chrono::steady_clock::now();
  resting_ = false;
  drafted_.clear();
  own_states_.clear();
  growing_ = 0;
  growers_.resize(std::max(growers_.size(), seats.size()));
  extend(seats);
  for (std::uint32_t depth = 1; depth < std::min(steps, options_.steps); ++depth)
    if (!grow(depth))
      break;
  keep_best(seats.size(), load, costs);
  write();
  for (std::size_t i = 0; i < growing_; ++i)
    pool_.give_back(growers_[i].blocks);
  const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - begin;
  figures_.seconds += spent.count();
}

} // namespace rollcast
