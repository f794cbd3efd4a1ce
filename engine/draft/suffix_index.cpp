#include "engine/draft/suffix_index.hpp"

#include <algorithm>
#include <bit>
#include <utility>

namespace rollcast {

namespace {

constexpr std::uint32_t base = 0x9e37'79b1; ///< Of the rolling hash; odd.
constexpr std::size_t heads_min = 64;
/// Positions compared at one level, and matches kept. More recent ones come first.
constexpr std::uint32_t candidates_max = 24;
constexpr std::uint32_t matches_max = 16;

constexpr std::uint32_t power(std::uint32_t exponent) {
  std::uint32_t out = 1;
  for (; exponent > 0; --exponent)
    out *= base;
  return out;
}

/// Tokens are small numbers; the hash wants all bits. Never 0, so a shorter run differs.
std::uint32_t mix(token_id token) {
  auto x = static_cast<std::uint32_t>(token) + 1;
  x *= 0x85eb'ca6b;
  return x ^ (x >> 15);
}

} // namespace

std::uint32_t suffix_index::open() {
  streams_.emplace_back();
  return static_cast<std::uint32_t>(streams_.size() - 1);
}

std::uint32_t suffix_index::bucket(std::uint32_t hash) const {
  return (hash * 0xc2b2'ae35u) >> (32 - std::countr_zero(heads_[0].size()));
}

std::uint32_t suffix_index::next(std::uint32_t position) const {
  const auto& b = *blocks_[position / block_tokens];
  const auto place = position % block_tokens + 1;
  if (place < b.used)
    return position + 1;
  return place < block_tokens || b.behind == none ? none : b.behind * block_tokens;
}

void suffix_index::append(std::uint32_t stream, std::span<const token_id> tokens) {
  for (const auto token : tokens)
    add(stream, token);
}

void suffix_index::add(std::uint32_t stream, token_id token) {
  if (tokens_ >= heads_[0].size())
    grow();
  auto& s = streams_[stream];
  if (s.last == none || blocks_[s.last]->used == block_tokens) {
    const auto fresh = static_cast<std::uint32_t>(blocks_.size());
    blocks_.push_back(std::make_unique<block>());
    blocks_.back()->before = s.last;
    if (s.last != none)
      blocks_[s.last]->behind = fresh;
    s.last = fresh;
  }
  auto& b = *blocks_[s.last];
  const auto place = b.used;
  const auto position = s.last * block_tokens + place;
  for (std::size_t level = 0; level < levels; ++level) {
    static constexpr std::array<std::uint32_t, levels> leaving{power(grams[0]), power(grams[1]),
                                                               power(grams[2]), power(grams[3])};
    const auto n = grams[level];
    s.hash[level] = s.hash[level] * base + mix(token);
    if (s.size >= n) {
      const auto gone =
        place >= n ? b.tokens[place - n] : blocks_[b.before]->tokens[place + block_tokens - n];
      s.hash[level] -= leaving[level] * mix(gone);
    }
    b.earlier[level][place] = none;
    if (s.size + 1 >= n)
      b.earlier[level][place] = std::exchange(heads_[level][bucket(s.hash[level])], position);
  }
  b.tokens[place] = token;
  ++b.used;
  ++s.size;
  ++tokens_;
}

void suffix_index::grow() {
  const auto size = std::max(heads_min, heads_[0].size() * 2);
  for (auto& heads : heads_) {
    heads.clear();
    heads.shrink_to_fit();
    heads.resize(size, none);
  }
  // Chained anew in the order of blocks, which is about that of time.
  for (std::uint32_t index = 0; index < blocks_.size(); ++index) {
    auto& b = *blocks_[index];
    for (std::size_t level = 0; level < levels; ++level) {
      const auto n = grams[level];
      const auto token = [&](std::uint32_t place, std::uint32_t back) { // `back` before `place`
        return place >= back ? b.tokens[place - back]
                             : blocks_[b.before]->tokens[place + block_tokens - back];
      };
      std::uint32_t hash = 0;
      std::uint32_t held = 0;
      for (auto back = b.before == none ? 0 : n - 1; back > 0; --back, ++held)
        hash = hash * base + mix(token(0, back));
      for (std::uint32_t place = 0; place < b.used; ++place) {
        hash = hash * base + mix(b.tokens[place]);
        if (++held > n)
          hash -= power(n) * mix(token(place, n));
        if (held >= n)
          b.earlier[level][place] =
            std::exchange(heads_[level][bucket(hash)], index * block_tokens + place);
      }
    }
  }
}

std::uint32_t suffix_index::match(std::uint32_t position, std::span<const token_id> context) const {
  auto index = position / block_tokens;
  auto place = position % block_tokens;
  for (std::uint32_t length = 0; length < context.size(); ++length) {
    const auto& b = *blocks_[index];
    if (b.tokens[place] != context[length])
      return length;
    if (place > 0) {
      --place;
      continue;
    }
    if (b.before == none)
      return length + 1;
    index = b.before;
    place = block_tokens - 1;
  }
  return static_cast<std::uint32_t>(context.size());
}

std::uint32_t suffix_index::find(const stream_state& s) const {
  // The context, last token first.
  std::array<token_id, match_max> tail;
  const auto held = std::min(s.size, match_max);
  auto index = s.last;
  auto place = blocks_[index]->used;
  for (std::uint32_t i = 0; i < held; ++i) {
    if (place == 0) {
      index = blocks_[index]->before;
      place = block_tokens;
    }
    tail[i] = blocks_[index]->tokens[--place];
  }
  const std::span context{tail.data(), held};
  const auto end = s.last * block_tokens + blocks_[s.last]->used - 1;
  for (auto level = levels; level-- > 0;) {
    if (s.size < grams[level])
      continue;
    std::uint32_t longest = 0;
    auto candidate = heads_[level][bucket(s.hash[level])];
    for (std::uint32_t tried = 0; candidate != none && tried < candidates_max; ++tried) {
      const auto here = candidate;
      candidate = blocks_[here / block_tokens]->earlier[level][here % block_tokens];
      if (here == end)
        continue;
      const auto length = match(here, context);
      if (length < grams[level] || next(here) == none)
        continue;
      longest = std::max(longest, length);
      cursors_.push_back({next(here), static_cast<float>(length)});
      if (cursors_.size() == matches_max)
        break;
    }
    if (cursors_.empty())
      continue;
    // What matches half as long as the longest says little beside it.
    std::erase_if(cursors_, [&](const cursor& c) { return 2 * c.weight < float(longest); });
    return longest;
  }
  return 0;
}

void suffix_index::fork(std::uint32_t begin, std::uint32_t end, float survival, std::int32_t parent,
                        const draft_shape& shape) const {
  float all = 0;
  for (auto i = begin; i < end; ++i)
    all += cursors_[i].weight;
  for (std::uint32_t branch = 0; branch < shape.branches_max && begin < end; ++branch) {
    // The token of the most weight; of equals the one that was found first.
    token_id token = 0;
    float most = 0;
    for (auto i = begin; i < end; ++i) {
      float weight = 0;
      const auto wanted = at(cursors_[i].position);
      for (auto k = begin; k < end; ++k)
        weight += at(cursors_[k].position) == wanted ? cursors_[k].weight : 0;
      if (weight > most) {
        most = weight;
        token = wanted;
      }
    }
    if (survival * most / all < shape.survival_min)
      return;
    const auto from = static_cast<std::uint32_t>(cursors_.size());
    auto kept = begin;
    for (auto i = begin; i < end; ++i) {
      const auto c = cursors_[i];
      if (at(c.position) != token)
        cursors_[kept++] = c;
      else if (const auto on = next(c.position); on != none)
        cursors_.push_back({on, c.weight});
    }
    end = kept;
    leaves_.push_back({survival * most / all,
                       {token, parent, most / all},
                       from,
                       static_cast<std::uint32_t>(cursors_.size())});
  }
}

std::uint32_t suffix_index::speculate(std::uint32_t stream, const draft_shape& shape,
                                      std::vector<draft_token>& out) const {
  out.clear();
  cursors_.clear();
  leaves_.clear();
  const auto& s = streams_[stream];
  if (s.size < grams[0] || shape.tokens_max == 0)
    return 0;
  const auto length = find(s);
  fork(0, static_cast<std::uint32_t>(cursors_.size()), 1.0f, -1, shape);
  while (!leaves_.empty() && out.size() < shape.tokens_max) {
    const auto best =
      std::max_element(leaves_.begin(), leaves_.end(),
                       [](const leaf& a, const leaf& b) { return a.survival < b.survival; });
    const auto chosen = *best;
    leaves_.erase(best);
    out.push_back(chosen.node);
    fork(chosen.begin, chosen.end, chosen.survival, static_cast<std::int32_t>(out.size()) - 1,
         shape);
  }
  return length;
}

std::size_t suffix_index::bytes() const noexcept {
  std::size_t out = blocks_.capacity() * sizeof(blocks_[0]) + blocks_.size() * sizeof(block)
                    + streams_.capacity() * sizeof(stream_state)
                    + cursors_.capacity() * sizeof(cursor) + leaves_.capacity() * sizeof(leaf);
  for (const auto& heads : heads_)
    out += heads.capacity() * sizeof(std::uint32_t);
  return out;
}

} // namespace rollcast
