#include "engine/tokenizer/added_tokens.hpp"

#include "engine/tokenizer/utf8.hpp"

#include <utility>

namespace rollcast {

added_token_finder::added_token_finder(std::vector<added_token> tokens)
  : tokens_(std::move(tokens)), nodes_(1) {
  for (std::size_t i = 0; i < tokens_.size(); ++i) {
    std::size_t at = 0;
    for (const char byte : tokens_[i].content) {
      const auto [child, fresh] = nodes_[at].next.try_emplace(byte, nodes_.size());
      at = child->second;
      if (fresh)
        nodes_.emplace_back();
    }
    if (nodes_[at].token < 0)
      nodes_[at].token = static_cast<std::int32_t>(i);
    may_start_[static_cast<unsigned char>(tokens_[i].content.front())] = true;
  }
}

const added_token* added_token_finder::longest_at_start(std::string_view text) const {
  const added_token* longest = nullptr;
  std::size_t at = 0;
  for (const char byte : text) {
    const auto child = nodes_[at].next.find(byte);
    if (child == nodes_[at].next.end())
      break;
    at = child->second;
    if (nodes_[at].token >= 0)
      longest = &tokens_[static_cast<std::size_t>(nodes_[at].token)];
  }
  return longest;
}

std::vector<text_part> added_token_finder::split(std::string_view text) const {
  std::vector<text_part> parts;
  std::size_t done = 0;
  for (std::size_t at = 0; at < text.size();) {
    const auto* token = may_start_[static_cast<unsigned char>(text[at])]
                          ? longest_at_start(text.substr(at))
                          : nullptr;
    if (token == nullptr) {
      ++at;
      continue;
    }
    auto start = at;
    auto stop = at + token->content.size();
    at = stop; // The reference goes on here also when it discards the match or strips past it.
    const auto after = text.substr(stop);
    if (token->single_word && (ends_with_word(text.substr(0, start)) || starts_with_word(after)))
      continue;
    if (token->lstrip) // The token before may have swallowed the space already.
      start = start < done ? done : start - space_at_end(text.substr(done, start - done));
    if (token->rstrip)
      stop += space_at_start(after);
    if (done < start)
      parts.push_back({text.substr(done, start - done), -1});
    parts.push_back({{}, token->id});
    done = stop;
  }
  if (done < text.size())
    parts.push_back({text.substr(done), -1});
  return parts;
}

} // namespace rollcast
