#include "cli/response_file.hpp"

#include "cli/base64.hpp"
#include "cli/json_lines.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <utility>

namespace rollcast::cli {

namespace {

/// Shortest decimal that reads back to the same float; JSON has no infinities, so those and NaN
/// become null (only a broken model makes them, and `score` then reports a difference).
void append_float(std::string& out, float x) {
  if (!std::isfinite(x)) {
    out += "null";
    return;
  }
  char digits[32];
  const auto end = std::to_chars(digits, digits + sizeof digits, x);
  out.append(digits, end.ptr);
}

template <class T, class Append>
void append_array(std::string& out, const char* name, const std::vector<T>& values, Append append) {
  out += std::string{",\""} + name + "\":[";
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (i > 0)
      out += ',';
    append(out, values[i]);
  }
  out += ']';
}

std::string quoted(const std::string& text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

float float_of(const nlohmann::json& value) {
  return value.is_null() ? std::nanf("") : static_cast<float>(value.get<double>());
}

/// Ids that do not fit become -1, which every reader refuses: wrapped around they would look valid.
std::vector<token_id> ids_of(const nlohmann::json& list) {
  std::vector<token_id> ids;
  for (const auto& value : list) {
    const auto id = value.get<std::int64_t>();
    ids.push_back(id < 0 || id > INT32_MAX ? -1 : static_cast<token_id>(id));
  }
  return ids;
}

/// Numbers that count: a negative one would wrap around to one that looks valid.
result<void> check_counts(const nlohmann::json& line) {
  for (const auto* key : {"group", "index", "seed"})
    if (const auto it = line.find(key); it != line.end() && !it->is_number_unsigned())
      return fail(errc::bad_prompt,
                  std::string{key} + " is " + it->dump() + ": it must be a whole number from 0");
  return {};
}

/// What a line says of experts. The shape is believed only if it is that of the ids.
result<routed_experts> experts_of(const nlohmann::json& line) {
  routed_experts out;
  const auto start = line.at("start").get<std::int64_t>();
  const auto shape = line.at("shape").get<std::vector<std::uint64_t>>();
  const auto type = line.at("dtype").get<std::string>();
  auto ids = from_base64(line.at("ids").get<std::string>());
  constexpr auto most = std::uint64_t{1} << 20; // so that products fit
  if (start < 0 || start > UINT32_MAX)
    return fail(errc::bad_prompt, "routed_experts: start is " + std::to_string(start)
                                    + ": it must be a position, from 0");
  if (!ids || shape.size() != 3 || *std::max_element(shape.begin(), shape.end()) > most
      || (type != "uint8" && type != "uint16")
      || shape[0] * shape[1] * shape[2] * (type == "uint8" ? 1 : 2) != ids->size())
    return fail(errc::bad_prompt, "routed_experts: ids must be base64 of the numbers that shape "
                                  "and dtype (uint8 or uint16) say");
  out.start = static_cast<std::uint32_t>(start);
  out.layout = {static_cast<std::uint32_t>(shape[1]), static_cast<std::uint32_t>(shape[2]),
                type == "uint8" ? 1u : 2u};
  out.ids = std::move(*ids);
  return out;
}

result<response_record> record_of(const nlohmann::json& line) {
  response_record r;
  r.group = line.value("group", std::uint64_t{0});
  r.index = line.value("index", 0u);
  r.id = line.value("id", "");
  r.prompt_token_ids = ids_of(line.at("prompt_token_ids"));
  r.token_ids = ids_of(line.at("token_ids"));
  for (const auto& value : line.at("logprobs"))
    r.logprobs.push_back(float_of(value));
  for (const auto& value : line.value("kept_masses", nlohmann::json::array()))
    r.kept_masses.push_back(float_of(value));
  r.finish_reason = line.value("finish_reason", "");
  for (const auto& span : line.value("weight_versions", nlohmann::json::array()))
    r.weight_versions.push_back(
      {span.value("version", std::uint64_t{0}), span.value("start", 0u), span.value("end", 0u)});
  r.seed = line.value("seed", std::uint64_t{0});
  r.temperature = float_of(line.value("temperature", nlohmann::json(1.0)));
  r.numerics_profile = line.value("numerics_profile", "");
  if (line.contains("routed_experts")) {
    auto experts = experts_of(line.at("routed_experts"));
    if (!experts)
      return fail(experts);
    r.experts = std::move(*experts);
  }
  if (line.contains("text"))
    r.text = line.at("text").get<std::string>();
  return r;
}

} // namespace

namespace {

void append_experts(std::string& out, const routed_experts& experts) {
  const auto& layout = experts.layout;
  const auto bytes = layout.position_bytes();
  out += ",\"routed_experts\":{\"start\":" + std::to_string(experts.start) + ",\"shape\":["
         + std::to_string(bytes == 0 ? 0 : experts.ids.size() / bytes) + ","
         + std::to_string(layout.layers) + "," + std::to_string(layout.per_token)
         + "],\"dtype\":" + (layout.id_bytes == 2 ? "\"uint16\"" : "\"uint8\"") + ",\"ids\":\""
         + to_base64(experts.ids) + "\"}";
}

} // namespace

std::string to_line(const response_record& record) {
  const auto integer = [](std::string& out, auto x) { out += std::to_string(x); };
  std::string out =
    "{\"group\":" + std::to_string(record.group) + ",\"index\":" + std::to_string(record.index);
  if (!record.id.empty())
    out += ",\"id\":" + quoted(record.id);
  append_array(out, "prompt_token_ids", record.prompt_token_ids, integer);
  append_array(out, "token_ids", record.token_ids, integer);
  append_array(out, "logprobs", record.logprobs, append_float);
  if (!record.kept_masses.empty())
    append_array(out, "kept_masses", record.kept_masses, append_float);
  out += ",\"finish_reason\":" + quoted(record.finish_reason);
  append_array(out, "weight_versions", record.weight_versions,
               [](std::string& to, const version_span& span) {
                 to += "{\"version\":" + std::to_string(span.version) + ",\"start\":"
                       + std::to_string(span.start) + ",\"end\":" + std::to_string(span.end) + "}";
               });
  out += ",\"seed\":" + std::to_string(record.seed) + ",\"temperature\":";
  append_float(out, record.temperature);
  out += ",\"numerics_profile\":" + quoted(record.numerics_profile);
  if (record.experts)
    append_experts(out, *record.experts);
  if (record.text)
    out += ",\"text\":" + quoted(*record.text);
  return out + "}";
}

result<response_record> from_line(const std::string& line, const std::string& where) {
  try {
    const auto parsed = nlohmann::json::parse(line);
    if (auto ok = check_counts(parsed); !ok)
      return fail(ok.error().code, where + ": " + ok.error().detail);
    auto record = record_of(parsed);
    return record ? std::move(record)
                  : fail(record.error().code, where + ": " + record.error().detail);
  } catch (const nlohmann::json::exception& e) {
    return fail(errc::bad_prompt, where + ": " + e.what());
  }
}

result<std::vector<response_record>> read_responses(const std::filesystem::path& path) {
  std::vector<response_record> records;
  const auto ok = for_each_json_line(path, [&](const nlohmann::json& line) -> result<void> {
    if (auto ok = check_counts(line); !ok)
      return ok;
    auto record = record_of(line);
    if (!record)
      return fail(record);
    records.push_back(std::move(*record));
    return {};
  });
  if (!ok)
    return fail(ok);
  return records;
}

} // namespace rollcast::cli
