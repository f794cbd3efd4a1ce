#include "engine/dump/dump_format.hpp"

#include "engine/model/config_reader.hpp"
#include "engine/model/json_reader.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <limits>
#include <system_error>

namespace rollcast {

namespace {

// With these bounds no size of a file exceeds 64 bits.
constexpr std::size_t layers_max = 1 << 10;
constexpr std::size_t columns_max = 1 << 24;
constexpr std::size_t tokens_max = 1 << 24;
constexpr std::size_t header_bytes_max = std::size_t{1} << 30;

std::string file_name(std::size_t sequence, const char* ending) {
  char name[40];
  std::snprintf(name, sizeof name, "%06zu.%s", sequence, ending);
  return name;
}

content_hash hash_from(const std::string& hex, bool& good) {
  content_hash hash;
  const auto half = [&](std::size_t at, std::uint64_t& into) {
    const char* const end = hex.data() + at + 16;
    const auto [stop, failed] = std::from_chars(hex.data() + at, end, into, 16);
    return failed == std::errc{} && stop == end;
  };
  good = hex.size() == 32 && half(0, hash.high) && half(16, hash.low);
  return hash;
}

void read_operations(config_reader& reader, dump_header& header) {
  const auto* const list = reader.find("operations");
  if (list == nullptr || !list->is_array() || list->empty())
    return reader.refuse("operations must be a list of objects with name and columns");
  for (const auto& entry : *list) {
    if (!entry.is_object())
      return reader.refuse("operations must be a list of objects with name and columns");
    config_reader one{entry, reader.where() + ": operations"};
    const auto name = one.text_or("name", "");
    const auto columns = one.count("columns", columns_max);
    if (!one.ok())
      return reader.refuse_as(one.failure());
    const auto known = std::ranges::find(operation_names, name);
    if (known == operation_names.end())
      return reader.refuse("operation '" + printable(name) + "' is unknown to this version");
    const auto what = static_cast<operation>(known - operation_names.begin());
    if (!header.operations.empty() && what <= header.operations.back().what)
      return reader.refuse("operation '" + name + "' is out of order");
    header.operations.push_back({what, static_cast<std::uint32_t>(columns)});
  }
}

void read_sequences(config_reader& reader, dump_header& header) {
  const auto* const list = reader.find("sequences");
  if (list == nullptr || !list->is_array() || list->empty())
    return reader.refuse("sequences must be a list of at least one object");
  for (const auto& entry : *list) {
    const std::string where =
      reader.where() + ": sequence " + std::to_string(header.sequences.size());
    if (!entry.is_object())
      return reader.refuse("sequences must be a list of objects");
    config_reader one{entry, where};
    dump_sequence sequence;
    sequence.name = printable(one.text_or("name", ""));
    sequence.tokens = static_cast<std::uint32_t>(one.count("tokens", tokens_max));
    sequence.prompt_tokens = static_cast<std::uint32_t>(one.count("prompt_tokens", tokens_max));
    sequence.temperature =
      static_cast<float>(one.real("temperature", 0, std::numeric_limits<float>::max()));
    bool good = false;
    sequence.token_ids = hash_from(one.text_or("token_ids_hash", ""), good);
    if (one.ok() && !good)
      one.refuse("token_ids_hash", "32 hexadecimal digits are needed");
    if (one.ok() && sequence.prompt_tokens >= sequence.tokens)
      one.refuse("prompt_tokens", "it must be below tokens");
    if (!one.ok())
      return reader.refuse_as(one.failure());
    header.sequences.push_back(std::move(sequence));
  }
}

result<void> check_file(const std::filesystem::path& file, std::uint64_t bytes) {
  std::error_code failed;
  const auto there = std::filesystem::file_size(file, failed);
  if (failed)
    return fail(errc::io_failed, file.string() + ": cannot read: " + failed.message());
  if (there != bytes)
    return fail(errc::bad_config, file.string() + ": " + std::to_string(there)
                                    + " bytes, but dump.json says " + std::to_string(bytes)
                                    + ": it was cut or belongs to another dump");
  return {};
}

} // namespace

std::vector<dump_operation> operations_of(const model_config& config) {
  const auto width = [](std::size_t n) { return static_cast<std::uint32_t>(n); };
  const auto hidden = width(config.hidden);
  const auto q = width(config.heads * config.head_dim);
  const auto kv = width(config.kv_heads * config.head_dim);
  const auto v = config.latent.rank != 0 ? width(config.latent.rank) : kv;
  const auto inner = width(config.intermediate);
  std::vector<dump_operation> out{{operation::embedding, hidden},
                                  {operation::input_norm, hidden},
                                  {operation::q, q},
                                  {operation::k, kv},
                                  {operation::v, v},
                                  {operation::attention, width(config.attended_width())},
                                  {operation::o, hidden},
                                  {operation::post_norm, hidden}};
  // What is within an FFN with experts has no fixed width: each row has experts of its own.
  if (config.experts.count == 0) {
    out.push_back({operation::gate_up, 2 * inner});
    out.push_back({operation::gated, inner});
  }
  out.push_back({operation::down, hidden});
  out.push_back({operation::final_norm, hidden});
  out.push_back({operation::logits, width(config.vocabulary)});
  out.push_back({operation::logprob, 1});
  return out;
}

std::vector<dump_block> blocks_of(const dump_header& header, const dump_sequence& sequence) {
  std::vector<dump_block> blocks;
  std::uint64_t hashes_at = 0;
  std::uint64_t values_at = 0;
  const std::uint32_t end = sequence.tokens - 1;
  const auto add = [&](const dump_operation& op, std::uint32_t layer) {
    const std::uint32_t first = of_logit_rows(op.what) ? sequence.prompt_tokens - 1 : 0;
    const std::uint32_t value_end =
      !header.values ? 0 : (header.value_rows == 0 ? end : std::min(end, header.value_rows));
    const std::uint32_t value_rows = value_end > first ? value_end - first : 0;
    blocks.push_back(
      {op.what, layer, op.columns, first, end - first, value_rows, hashes_at, values_at});
    hashes_at += std::uint64_t{end - first} * dump_hash_bytes;
    values_at += std::uint64_t{value_rows} * op.columns * sizeof(float);
  };
  const auto& ops = header.operations;
  for (const auto& op : ops)
    if (op.what < operation::input_norm)
      add(op, 0);
  for (std::uint32_t layer = 0; layer < header.layers; ++layer)
    for (const auto& op : ops)
      if (in_layers(op.what))
        add(op, layer);
  for (const auto& op : ops)
    if (of_logit_rows(op.what))
      add(op, 0);
  return blocks;
}

std::ptrdiff_t block_index(const dump_header& header, operation what,
                           std::uint32_t layer) noexcept {
  const auto& ops = header.operations;
  const auto at = std::ranges::find(ops, what, &dump_operation::what);
  if (at == ops.end() || layer >= header.layers)
    return -1;
  const auto per_layer =
    std::ranges::count_if(ops, [](const dump_operation& op) { return in_layers(op.what); });
  const std::uint32_t layers_before =
    in_layers(what) ? layer : (of_logit_rows(what) ? header.layers - 1 : 0);
  return (at - ops.begin()) + per_layer * static_cast<std::ptrdiff_t>(layers_before);
}

dump_bytes bytes_of(const dump_header& header, const dump_sequence& sequence) {
  dump_bytes bytes;
  for (const auto& block : blocks_of(header, sequence)) {
    bytes.hashes += std::uint64_t{block.rows} * dump_hash_bytes;
    bytes.values += std::uint64_t{block.value_rows} * block.columns * sizeof(float);
  }
  return bytes;
}

void put_hash(const content_hash& hash, std::byte* to) noexcept {
  for (std::size_t i = 0; i < 8; ++i) {
    to[i] = static_cast<std::byte>(hash.high >> (56 - 8 * i));
    to[8 + i] = static_cast<std::byte>(hash.low >> (56 - 8 * i));
  }
}

std::string hashes_file(std::size_t sequence) {
  return file_name(sequence, "hashes");
}
std::string values_file(std::size_t sequence) {
  return file_name(sequence, "values");
}

std::string to_json(const dump_header& header) {
  nlohmann::ordered_json json{{"format", dump_format_name},
                              {"rollcast_version", header.rollcast_version},
                              {"model", header.model},
                              {"weights_hash", header.weights_hash},
                              {"numerics_profile", header.numerics_profile},
                              {"numerics_hash", header.numerics_hash},
                              {"layers", header.layers},
                              {"values", header.values},
                              {"value_rows", header.value_rows}};
  json["operations"] = nlohmann::ordered_json::array();
  for (const auto& op : header.operations)
    json["operations"].push_back({{"name", name_of(op.what)}, {"columns", op.columns}});
  json["sequences"] = nlohmann::ordered_json::array();
  for (const auto& sequence : header.sequences)
    json["sequences"].push_back({{"name", sequence.name},
                                 {"tokens", sequence.tokens},
                                 {"prompt_tokens", sequence.prompt_tokens},
                                 {"token_ids_hash", to_string(sequence.token_ids)},
                                 {"temperature", sequence.temperature}});
  return json.dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

result<dump_header> read_dump_header(const std::filesystem::path& directory) {
  const auto file = directory / "dump.json";
  std::error_code failed;
  if (!std::filesystem::exists(file, failed))
    return fail(errc::io_failed, directory.string()
                                   + ": holds no dump.json: it is no dump, or one that was not "
                                     "finished");
  const auto json = read_json_object(file, header_bytes_max, errc::bad_config);
  if (!json)
    return fail(json);
  config_reader reader{*json, file.string()};
  if (reader.text_or("format", "") != dump_format_name)
    reader.refuse("format must be \"" + std::string{dump_format_name} + "\"");
  dump_header header;
  header.rollcast_version = printable(reader.text_or("rollcast_version", ""));
  header.model = printable(reader.text_or("model", ""));
  header.weights_hash = printable(reader.text_or("weights_hash", ""));
  header.numerics_profile = printable(reader.text_or("numerics_profile", ""));
  header.numerics_hash = printable(reader.text_or("numerics_hash", ""));
  header.layers = static_cast<std::uint32_t>(reader.count("layers", layers_max));
  header.values = reader.flag_or("values", false);
  header.value_rows = static_cast<std::uint32_t>(reader.count_or("value_rows", 0, 0, tokens_max));
  if (reader.ok())
    read_operations(reader, header);
  if (reader.ok())
    read_sequences(reader, header);
  if (!reader.ok())
    return tl::unexpected(reader.failure());
  for (std::size_t i = 0; i < header.sequences.size(); ++i) {
    const auto bytes = bytes_of(header, header.sequences[i]);
    if (auto ok = check_file(directory / hashes_file(i), bytes.hashes); !ok)
      return fail(ok);
    if (!header.values)
      continue;
    if (auto ok = check_file(directory / values_file(i), bytes.values); !ok)
      return fail(ok);
  }
  return header;
}

} // namespace rollcast
