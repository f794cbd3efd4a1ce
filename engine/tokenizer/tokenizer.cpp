#include "engine/tokenizer/tokenizer.hpp"

#include "engine/tokenizer/added_tokens.hpp"
#include "engine/tokenizer/bpe.hpp"
#include "engine/tokenizer/byte_level.hpp"
#include "engine/tokenizer/regex.hpp"
#include "engine/tokenizer/spec.hpp"
#include "engine/tokenizer/utf8.hpp"

#include <algorithm>
#include <array>
#include <iterator>
#include <unordered_map>
#include <utility>

namespace rollcast {
namespace {

/// What one id stands for.
struct token_entry {
  std::string bytes;
  bool known = false;
  bool special = false;
};

tl::unexpected<error> bad(std::string detail) {
  return fail(errc::bad_tokenizer, std::move(detail));
}

std::string in_quotes(std::string_view token) {
  std::string shown = "\"";
  for (const char c : token.substr(0, 60))
    shown += static_cast<unsigned char>(c) < 0x20 ? '?' : c;
  return shown + (token.size() > 60 ? "...\"" : "\"");
}

} // namespace

// -- loading ----------------------------------------------------------------------------------

struct tokenizer::tables {
  bool nfc = false;
  bool add_prefix_space = false;
  bool ignore_merges = false;
  std::vector<split_pattern> splits;
  std::optional<split_pattern> byte_level_split;
  std::vector<token_entry> tokens; // by id
  std::array<token_id, 256> byte_tokens{};
  merge_table merges;
  std::unordered_map<std::string_view, token_id> whole; // views into `tokens`; if ignore_merges
  added_token_finder in_raw_text;
  added_token_finder in_normalized_text;
  std::unordered_map<std::string, token_id> added;
  std::vector<token_id> prefix;
  std::vector<token_id> suffix;

  result<void> take_vocabulary(const tokenizer_spec& spec);
  result<void> take_merges(const tokenizer_spec& spec);
  result<void> take_added_tokens(const tokenizer_spec& spec);
  result<void> take_patterns(const tokenizer_spec& spec);
  result<void> take_template(const tokenizer_spec& spec);
  result<void> take(const tokenizer_spec& spec);
};

result<void> tokenizer::tables::take_vocabulary(const tokenizer_spec& spec) {
  byte_tokens.fill(-1);
  token_id largest = 0;
  for (const auto& [token, id] : spec.vocabulary)
    largest = std::max(largest, id);
  for (const auto& token : spec.added_tokens)
    largest = std::max(largest, token.id);
  tokens.resize(static_cast<std::size_t>(largest) + 1);
  for (const auto& [token, id] : spec.vocabulary) {
    auto& entry = tokens[static_cast<std::size_t>(id)];
    auto bytes = bytes_of_byte_level(token);
    if (entry.known)
      return bad("model.vocab gives id " + std::to_string(id) + " to " + in_quotes(token)
                 + " and to another token");
    // A token outside the byte-level alphabet never comes out of merging; it stands for itself.
    entry = {bytes.value_or(token), true, false};
    if (bytes && bytes->size() == 1)
      byte_tokens[static_cast<unsigned char>(bytes->front())] = id;
    if (bytes && ignore_merges)
      whole.emplace(entry.bytes, id);
  }
  const auto missing = std::find(byte_tokens.begin(), byte_tokens.end(), -1);
  if (missing != byte_tokens.end())
    return bad("model.vocab has no token for byte " + std::to_string(missing - byte_tokens.begin())
               + "; byte-level BPE needs all 256");
  return {};
}

result<void> tokenizer::tables::take_merges(const tokenizer_spec& spec) {
  merges = merge_table{spec.merges.size()};
  const auto find = [&](const std::string& token) {
    const auto found = spec.vocabulary.find(token);
    return found == spec.vocabulary.end() ? token_id{-1} : found->second;
  };
  for (std::size_t rank = 0; rank < spec.merges.size(); ++rank) {
    const auto& [left, right] = spec.merges[rank];
    for (const auto& token : {left, right, left + right})
      if (find(token) < 0)
        return bad("merge " + std::to_string(rank) + " of " + in_quotes(left) + " and "
                   + in_quotes(right) + " needs " + in_quotes(token)
                   + ", which is not in model.vocab");
    merges.insert(find(left), find(right), {static_cast<std::uint32_t>(rank), find(left + right)});
  }
  return {};
}

result<void> tokenizer::tables::take_added_tokens(const tokenizer_spec& spec) {
  // Special tokens go first, as in the reference, where the first of two equal contents wins.
  auto ordered = spec.added_tokens;
  std::stable_partition(ordered.begin(), ordered.end(),
                        [](const added_token& token) { return token.special; });
  std::vector<added_token> raw;
  std::vector<added_token> normalized;
  for (auto& token : ordered) {
    auto& entry = tokens[static_cast<std::size_t>(token.id)];
    const auto in_model = spec.vocabulary.find(token.content);
    const bool same_as_model = in_model != spec.vocabulary.end() && in_model->second == token.id;
    if (!added.emplace(token.content, token.id).second)
      return bad("added_tokens has " + in_quotes(token.content) + " twice");
    if (in_model != spec.vocabulary.end() && !same_as_model)
      return bad("added token " + in_quotes(token.content) + " has id " + std::to_string(token.id)
                 + " but model.vocab gives it " + std::to_string(in_model->second));
    if (entry.known && !same_as_model)
      return bad("added token " + in_quotes(token.content) + " has id " + std::to_string(token.id)
                 + ", which " + in_quotes(entry.bytes) + " has already");
    if (!entry.known)
      entry.bytes = token.content;
    entry.known = true;
    entry.special = token.special;
    if (token.normalized && nfc)
      token.content = to_nfc(token.content);
    (token.normalized ? normalized : raw).push_back(std::move(token));
  }
  in_raw_text = added_token_finder{std::move(raw)};
  in_normalized_text = added_token_finder{std::move(normalized)};
  return {};
}

result<void> tokenizer::tables::take_patterns(const tokenizer_spec& spec) {
  const auto compile = [](const std::string& pcre2) {
    return split_pattern::compile(pcre2).map_error([](error failed) {
      failed.detail = "pre_tokenizer: " + failed.detail;
      return failed;
    });
  };
  for (const auto& pcre2 : spec.split_pcre2) {
    auto pattern = compile(pcre2);
    if (!pattern)
      return fail(pattern);
    splits.push_back(std::move(*pattern));
  }
  if (spec.byte_level_pcre2.empty())
    return {};
  auto pattern = compile(spec.byte_level_pcre2);
  if (!pattern)
    return fail(pattern);
  byte_level_split = std::move(*pattern);
  return {};
}

result<void> tokenizer::tables::take_template(const tokenizer_spec& spec) {
  prefix = spec.prefix;
  suffix = spec.suffix;
  for (const auto& ids : {prefix, suffix})
    for (const auto id : ids)
      if (static_cast<std::size_t>(id) >= tokens.size()
          || !tokens[static_cast<std::size_t>(id)].known)
        return bad("post_processor adds id " + std::to_string(id) + ", which no token has");
  return {};
}

result<void> tokenizer::tables::take(const tokenizer_spec& spec) {
  nfc = spec.nfc;
  add_prefix_space = spec.add_prefix_space;
  ignore_merges = spec.ignore_merges;
  return take_vocabulary(spec)
    .and_then([&] { return take_merges(spec); })
    .and_then([&] { return take_added_tokens(spec); })
    .and_then([&] { return take_patterns(spec); })
    .and_then([&] { return take_template(spec); });
}

result<tokenizer> tokenizer::load(const std::filesystem::path& tokenizer_json) {
  const auto spec = read_spec(tokenizer_json);
  if (!spec)
    return fail(spec);
  auto loaded = std::make_unique<tables>();
  if (const auto taken = loaded->take(*spec); !taken)
    return fail(taken.error().code, tokenizer_json.string() + ": " + taken.error().detail);
  return tokenizer{std::move(loaded)};
}

tokenizer::tokenizer(std::unique_ptr<const tables> loaded) noexcept : tables_(std::move(loaded)) {}
tokenizer::tokenizer(tokenizer&&) noexcept = default;
tokenizer& tokenizer::operator=(tokenizer&&) noexcept = default;
tokenizer::~tokenizer() = default;

// -- encoding ---------------------------------------------------------------------------------

/// One call of `encode`: what is the same for all its pieces.
class tokenizer::encoder {
public:
  encoder(const tables& t, std::vector<token_id>& out) : t_(t), out_(out) {}

  void text(std::string_view bytes) {
    for (const auto& part : t_.in_raw_text.split(bytes)) {
      if (part.token >= 0)
        out_.push_back(part.token);
      else
        plain(part.text);
    }
  }

private:
  /// Text without added tokens: the runs of valid UTF-8 in it, and the bytes between them.
  void plain(std::string_view bytes) {
    while (!bytes.empty()) {
      const auto run = first_run(bytes);
      bytes.remove_prefix(run.text.size());
      if (run.valid)
        valid(run.text);
      else
        for (const char byte : run.text)
          out_.push_back(t_.byte_tokens[static_cast<unsigned char>(byte)]);
    }
  }

  void valid(std::string_view utf8) {
    std::string composed;
    if (t_.nfc)
      utf8 = composed = to_nfc(utf8);
    for (const auto& part : t_.in_normalized_text.split(utf8)) {
      if (part.token >= 0)
        out_.push_back(part.token);
      else
        split(part.text, 0);
    }
  }

  /// Cuts with the patterns from number `step` on, each inside the pieces of the one before.
  void split(std::string_view utf8, std::size_t step) {
    if (step < t_.splits.size())
      t_.splits[step].split(utf8, [&](std::string_view piece) { split(piece, step + 1); });
    else
      byte_level(utf8);
  }

  void byte_level(std::string_view utf8) {
    std::string spaced;
    if (t_.add_prefix_space && !utf8.starts_with(' '))
      utf8 = spaced.append(" ").append(utf8);
    if (t_.byte_level_split)
      t_.byte_level_split->split(utf8, [&](std::string_view piece) { model(piece); });
    else
      model(utf8);
  }

  void model(std::string_view piece) {
    if (t_.ignore_merges)
      if (const auto found = t_.whole.find(piece); found != t_.whole.end()) {
        out_.push_back(found->second);
        return;
      }
    merge_bytes(piece, t_.byte_tokens, t_.merges, scratch_, out_);
  }

  const tables& t_;
  std::vector<token_id>& out_;
  merge_scratch scratch_;
};

std::vector<token_id> tokenizer::encode(std::string_view utf8, encode_special special) const {
  std::vector<token_id> ids;
  if (special == encode_special::add)
    ids = tables_->prefix;
  encoder{*tables_, ids}.text(utf8);
  if (special == encode_special::add)
    ids.insert(ids.end(), tables_->suffix.begin(), tables_->suffix.end());
  return ids;
}

// -- decoding ---------------------------------------------------------------------------------

result<std::string> tokenizer::decode(std::span<const token_id> ids, decode_special special) const {
  std::string bytes;
  const auto& tokens = tables_->tokens;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const auto at = static_cast<std::size_t>(ids[i]);
    if (ids[i] < 0 || at >= tokens.size() || !tokens[at].known)
      return fail(errc::bad_prompt, "token id " + std::to_string(ids[i]) + " at position "
                                      + std::to_string(i) + " of " + std::to_string(ids.size())
                                      + " is not in the tokenizer, which has ids below "
                                      + std::to_string(tokens.size()));
    if (special == decode_special::keep || !tokens[at].special)
      bytes += tokens[at].bytes;
  }
  return bytes;
}

std::size_t tokenizer::vocabulary() const noexcept {
  return tables_->tokens.size();
}

std::optional<token_id> tokenizer::id_of(std::string_view added_token) const {
  const auto found = tables_->added.find(std::string{added_token});
  if (found == tables_->added.end())
    return std::nullopt;
  return found->second;
}

} // namespace rollcast
