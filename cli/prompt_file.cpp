#include "cli/prompt_file.hpp"

#include "cli/json_lines.hpp"
#include "cluster/wire/validate.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <limits>
#include <string>
#include <string_view>

namespace rollcast::cli {

namespace {

using nlohmann::json;

result<void> refuse_unknown(const json& object, std::span<const std::string_view> known,
                            const char* what) {
  for (const auto& [key, value] : object.items())
    if (std::find(known.begin(), known.end(), key) == known.end())
      return fail(errc::bad_prompt, std::string{"unknown "} + what + " '" + key + "'");
  return {};
}

/// Reads a whole number of the target's range; JSON would silently wrap -1 or cut 1.5.
template <class T>
result<void> read_count(const json& object, const char* key, T& out) {
  if (!object.contains(key))
    return {};
  const json& value = object.at(key);
  constexpr auto max = std::numeric_limits<T>::max();
  if (!value.is_number_unsigned() || value.get<std::uint64_t>() > max)
    return fail(errc::bad_prompt, std::string{key} + " is " + value.dump()
                                    + ": it must be a whole number of 0 to " + std::to_string(max));
  out = value.get<T>();
  return {};
}

result<void> read_float(const json& object, const char* key, float& out) {
  if (!object.contains(key))
    return {};
  const json& value = object.at(key);
  if (!value.is_number())
    return fail(errc::bad_sampling,
                std::string{key} + " is " + value.dump() + ": it must be a number");
  out = static_cast<float>(value.get<double>());
  return {};
}

result<std::vector<token_id>> read_ids(const json& object, const char* key) {
  std::vector<token_id> ids;
  const json& list = object.at(key);
  if (!list.is_array())
    return fail(errc::bad_prompt, std::string{key} + " must be a list of token ids");
  for (const json& value : list) {
    const bool whole = value.is_number_integer();
    const auto id = whole ? value.get<std::int64_t>() : -1;
    if (id < 0 || id > std::numeric_limits<token_id>::max())
      return fail(errc::bad_prompt, "token id " + value.dump() + " in " + key
                                      + " is not a whole number of 0 or more");
    ids.push_back(static_cast<token_id>(id));
  }
  return ids;
}

result<wire::sampling_params> read_sampling(const json& object, wire::sampling_params sampling) {
  constexpr std::array<std::string_view, 8> known{
    "temperature",    "top_p",          "top_k",          "min_p",
    "max_new_tokens", "min_new_tokens", "stop_token_ids", "ignore_eos"};
  if (!object.is_object())
    return fail(errc::bad_sampling, "sampling must be an object");
  result<void> ok = refuse_unknown(object, known, "sampling key");
  const auto then = [&ok](result<void> next) { ok = ok ? std::move(next) : ok; };
  then(read_float(object, "temperature", sampling.temperature));
  then(read_float(object, "top_p", sampling.top_p));
  then(read_float(object, "min_p", sampling.min_p));
  then(read_count(object, "top_k", sampling.top_k));
  then(read_count(object, "max_new_tokens", sampling.max_new_tokens));
  then(read_count(object, "min_new_tokens", sampling.min_new_tokens));
  if (!ok)
    return fail(ok);
  if (object.contains("ignore_eos")) {
    const json& value = object.at("ignore_eos");
    if (!value.is_boolean())
      return fail(errc::bad_sampling,
                  "ignore_eos is " + value.dump() + ": it must be true or false");
    sampling.ignore_eos = value.get<bool>();
  }
  if (object.contains("stop_token_ids")) {
    auto ids = read_ids(object, "stop_token_ids");
    if (!ids)
      return fail(ids);
    sampling.stop_token_ids = std::move(*ids);
  }
  return sampling;
}

result<std::vector<token_id>> read_tokens(const json& line, const tokenizer* words) {
  if (line.contains("prompt") == line.contains("prompt_token_ids"))
    return fail(errc::bad_prompt, "give either prompt or prompt_token_ids");
  if (line.contains("prompt_token_ids"))
    return read_ids(line, "prompt_token_ids");
  if (!line.at("prompt").is_string())
    return fail(errc::bad_prompt, "prompt must be a string");
  if (words == nullptr)
    return fail(errc::bad_prompt, "a text prompt needs the model's tokenizer.json: give "
                                  "--model or --tokenizer, or prompt_token_ids");
  return words->encode(line.at("prompt").get<std::string>());
}

result<wire::prompt_group> read_prompt(const json& line, const prompt_defaults& defaults,
                                       const tokenizer* words) {
  constexpr std::array<std::string_view, 6> known{"prompt", "prompt_token_ids", "id", "group_size",
                                                  "seed",   "sampling"};
  if (auto ok = refuse_unknown(line, known, "key"); !ok)
    return fail(ok);
  wire::prompt_group group;
  group.group_size = defaults.group_size;
  if (line.contains("id"))
    group.id = line.at("id").is_string() ? line.at("id").get<std::string>() : line.at("id").dump();
  if (auto ok = read_count(line, "group_size", group.group_size); !ok)
    return fail(ok);
  if (line.contains("seed")) {
    std::uint64_t seed = 0;
    if (auto ok = read_count(line, "seed", seed); !ok)
      return fail(ok);
    group.seed = seed;
  }
  if (line.contains("sampling")) {
    auto sampling = read_sampling(line.at("sampling"), defaults.sampling);
    if (!sampling)
      return fail(sampling);
    if (auto ok = wire::validate(*sampling, "sampling"); !ok)
      return fail(ok);
    group.sampling = std::move(*sampling);
  }
  auto tokens = read_tokens(line, words);
  if (!tokens)
    return fail(tokens);
  if (tokens->empty())
    return fail(errc::bad_prompt, "the prompt is empty: it needs at least one token");
  if (group.group_size == 0)
    return fail(errc::bad_prompt, "group_size is 0: it must be at least 1");
  group.prompt_token_ids = std::move(*tokens);
  return group;
}

} // namespace

result<std::vector<wire::prompt_group>> read_prompts(const std::filesystem::path& path,
                                                     const prompt_defaults& defaults,
                                                     const tokenizer* words) {
  std::vector<wire::prompt_group> groups;
  const auto ok = for_each_json_line(path, [&](const json& line) -> result<void> {
    auto group = read_prompt(line, defaults, words);
    if (!group)
      return fail(group);
    groups.push_back(std::move(*group));
    return {};
  });
  if (!ok)
    return fail(ok);
  if (groups.empty())
    return fail(errc::bad_prompt, path.string() + " holds no prompt");
  return groups;
}

} // namespace rollcast::cli
