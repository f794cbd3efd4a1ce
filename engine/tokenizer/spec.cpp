#include "engine/tokenizer/spec.hpp"

#include "engine/tokenizer/regex.hpp"

#include <nlohmann/json.hpp>

#include <fstream>
#include <initializer_list>
#include <iterator>
#include <string_view>

namespace rollcast {
namespace {

using nlohmann::json;

/// The GPT-2 pattern, which a ByteLevel pre-tokenizer with `use_regex` stands for.
constexpr std::string_view gpt2_pattern =
  R"('(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

/// `value` as one short line of ASCII, for an error. Lists and objects are only named: printing
/// one recurses, and a hostile file may nest them a million deep.
std::string shown(const json& value) {
  if (value.is_structured())
    return value.is_array() ? "a list" : "an object";
  auto text = value.dump(-1, ' ', true);
  if (text.size() > 80)
    text = text.substr(0, 77) + "...";
  return text;
}

tl::unexpected<error> bad(std::string detail) {
  return fail(errc::bad_tokenizer, std::move(detail));
}

/// The member `name`; null where it is missing or `object` is no object.
const json& member(const json& object, const char* name) {
  static const json null;
  if (!object.is_object())
    return null;
  const auto found = object.find(name);
  return found == object.end() ? null : *found;
}

/// The member `type` of `object`, or an empty string.
std::string type_of(const json& object) {
  const auto& type = member(object, "type");
  return type.is_string() ? type.get<std::string>() : std::string{};
}

/// Names a kind that is not supported, where it stands and what is.
tl::unexpected<error> unsupported(std::string_view where, const json& what,
                                  std::string_view supported) {
  const auto& type = member(what, "type");
  return bad(std::string{where} + " of type " + shown(type.is_null() ? what : type)
             + " is not supported, only " + std::string{supported});
}

/// A flag that the reference leaves out when it has its usual value.
result<bool> flag(const json& object, const char* name, bool usual, std::string_view where) {
  const auto& value = member(object, name);
  if (value.is_null())
    return usual;
  if (!value.is_boolean())
    return bad(std::string{where} + "." + name + " is " + shown(value)
               + " and must be true or false");
  return value.get<bool>();
}

result<token_id> id_in(const json& value, std::string_view of) {
  if (!value.is_number_unsigned() || value.get<std::uint64_t>() > std::uint64_t{largest_token_id})
    return bad("the id of " + std::string{of} + " is " + shown(value) + " and must be 0 to "
               + std::to_string(largest_token_id));
  return value.get<token_id>();
}

// -- normalizer -------------------------------------------------------------------------------

result<bool> has_nfc(const json& normalizer) {
  if (normalizer.is_null())
    return false;
  const auto type = type_of(normalizer);
  if (type == "NFC")
    return true;
  const auto& parts = member(normalizer, "normalizers");
  if (type != "Sequence" || !parts.is_array())
    return unsupported("normalizer", normalizer, "null, NFC and Sequence of NFC");
  for (const auto& part : parts)
    if (type_of(part) != "NFC")
      return unsupported("normalizer", part, "null, NFC and Sequence of NFC");
  return !parts.empty();
}

// -- pre-tokenizer ----------------------------------------------------------------------------

result<std::string> split_of(const json& step) {
  if (member(step, "behavior") != "Isolated")
    return bad("pre_tokenizer Split with behavior " + shown(member(step, "behavior"))
               + " is not supported, only \"Isolated\"");
  const auto invert = flag(step, "invert", false, "pre_tokenizer");
  if (!invert)
    return fail(invert);
  if (*invert)
    return bad("pre_tokenizer Split with invert true is not supported");
  const auto& pattern = member(step, "pattern");
  const auto& regex = member(pattern, "Regex");
  const auto& literal = member(pattern, "String");
  if (literal.is_string())
    return quoted_for_pcre2(literal.get_ref<const std::string&>());
  if (!regex.is_string())
    return bad("pre_tokenizer Split needs a pattern with Regex or String, not " + shown(pattern));
  return to_pcre2(regex.get_ref<const std::string&>());
}

result<void> read_pre_tokenizer(const json& pre_tokenizer, tokenizer_spec& spec) {
  constexpr std::string_view supported = "ByteLevel and Sequence of Split, with ByteLevel last";
  const bool is_sequence = type_of(pre_tokenizer) == "Sequence";
  const auto& parts = member(pre_tokenizer, "pretokenizers");
  if (is_sequence && (!parts.is_array() || parts.empty()))
    return bad("pre_tokenizer Sequence has no pretokenizers");
  const std::size_t splits = is_sequence ? parts.size() - 1 : 0;
  for (std::size_t i = 0; i < splits; ++i) {
    if (type_of(parts[i]) != "Split")
      return unsupported("pre_tokenizer", parts[i], supported);
    auto pattern = split_of(parts[i]);
    if (!pattern)
      return fail(pattern);
    spec.split_pcre2.push_back(std::move(*pattern));
  }
  const auto& last = is_sequence ? parts.back() : pre_tokenizer;
  if (type_of(last) != "ByteLevel")
    return unsupported("pre_tokenizer", last, supported);
  const auto prefix = flag(last, "add_prefix_space", true, "pre_tokenizer");
  const auto use_regex = flag(last, "use_regex", true, "pre_tokenizer");
  if (!prefix)
    return fail(prefix);
  if (!use_regex)
    return fail(use_regex);
  spec.add_prefix_space = *prefix;
  spec.byte_level_pcre2 = *use_regex ? to_pcre2(gpt2_pattern).value() : std::string{};
  return {};
}

// -- model ------------------------------------------------------------------------------------

/// Refuses what BPE models may have beyond byte-level BPE.
result<void> check_model_kind(const json& model) {
  // Files of 2020 have no type; a model with merges is BPE.
  const auto& type = member(model, "type");
  if (type != "BPE" && !(type.is_null() && model.contains("merges")))
    return unsupported("model", model, "BPE");
  const auto& dropout = member(model, "dropout");
  if (!dropout.is_null() && dropout != 0.0)
    return bad("model.dropout " + shown(dropout) + " is not supported, only null");
  for (const char* name : {"continuing_subword_prefix", "end_of_word_suffix"})
    if (const auto& affix = member(model, name); !affix.is_null() && affix != "")
      return bad(std::string{"model."} + name + " " + shown(affix)
                 + " is not supported, only null");
  if (const auto& fallback = member(model, "byte_fallback");
      !fallback.is_null() && fallback != false)
    return bad("model.byte_fallback " + shown(fallback) + " is not supported, only false");
  return {};
}

result<void> read_vocabulary(const json& model, tokenizer_spec& spec) {
  const auto& vocab = member(model, "vocab");
  if (!vocab.is_object() || vocab.empty())
    return bad("model.vocab is missing or empty");
  spec.vocabulary.reserve(vocab.size());
  for (const auto& [token, value] : vocab.items()) {
    const auto id = id_in(value, shown(token));
    if (!id)
      return fail(id);
    spec.vocabulary.emplace(token, *id);
  }
  return {};
}

result<void> read_merges(const json& model, tokenizer_spec& spec) {
  const auto& merges = member(model, "merges");
  if (!merges.is_array())
    return bad("model.merges is missing");
  spec.merges.reserve(merges.size());
  for (const auto& merge : merges) {
    if (merge.is_string()) {
      const auto& pair = merge.get_ref<const std::string&>();
      const auto space = pair.find(' ');
      if (pair.starts_with("#version")) // The head of merges.txt, which the reference skips too.
        continue;
      if (space != std::string::npos && pair.find(' ', space + 1) == std::string::npos) {
        spec.merges.emplace_back(pair.substr(0, space), pair.substr(space + 1));
        continue;
      }
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string()
               && merge[1].is_string()) {
      spec.merges.emplace_back(merge[0].get<std::string>(), merge[1].get<std::string>());
      continue;
    }
    return bad("model.merges has " + shown(merge) + ", which is no pair of tokens");
  }
  return {};
}

// -- added tokens and post-processor ----------------------------------------------------------

result<void> read_added_tokens(const json& list, tokenizer_spec& spec) {
  if (list.is_null())
    return {};
  if (!list.is_array())
    return bad("added_tokens is no list");
  for (const auto& entry : list) {
    const auto& content = member(entry, "content");
    if (!content.is_string() || content == "")
      return bad("added_tokens has " + shown(entry) + ", which has no content");
    added_token token;
    token.content = content.get<std::string>();
    const auto id = id_in(member(entry, "id"), shown(content));
    if (!id)
      return fail(id);
    token.id = *id;
    const std::initializer_list<std::pair<const char*, bool*>> flags = {
      {"special", &token.special},
      {"lstrip", &token.lstrip},
      {"rstrip", &token.rstrip},
      {"single_word", &token.single_word},
      {"normalized", &token.normalized}};
    for (const auto& [name, target] : flags) {
      const auto value = flag(entry, name, false, "added_tokens");
      if (!value)
        return fail(value);
      *target = *value;
    }
    spec.added_tokens.push_back(std::move(token));
  }
  return {};
}

/// Reads what one TemplateProcessing puts around a single text.
result<void> read_template(const json& post, tokenizer_spec& spec) {
  const auto& single = member(post, "single");
  bool in_text = false;
  std::vector<token_id> before;
  if (!single.is_array())
    return bad("post_processor TemplateProcessing has no list single");
  for (const auto& piece : single) {
    const auto& sequence = member(member(piece, "Sequence"), "id");
    const auto& special = member(member(piece, "SpecialToken"), "id");
    if (sequence == "A" && !in_text) {
      in_text = true;
      continue;
    }
    const json* ids = nullptr;
    if (special.is_string())
      ids = &member(
        member(member(post, "special_tokens"), special.get_ref<const std::string&>().c_str()),
        "ids");
    if (ids == nullptr || !ids->is_array())
      return bad("post_processor TemplateProcessing has " + shown(piece)
                 + ", which is neither the text A once nor one of its special_tokens");
    for (const auto& value : *ids) {
      const auto id = id_in(value, shown(special));
      if (!id)
        return fail(id);
      (in_text ? spec.suffix : before).push_back(*id);
    }
  }
  if (!in_text)
    return bad("post_processor TemplateProcessing has no text A in single");
  spec.prefix.insert(spec.prefix.begin(), before.begin(), before.end());
  return {};
}

result<void> read_post_processor(const json& post, tokenizer_spec& spec) {
  constexpr std::string_view supported =
    "null, ByteLevel, TemplateProcessing and Sequence of these";
  // ByteLevel only moves offsets into the text, which we do not report.
  if (post.is_null() || type_of(post) == "ByteLevel")
    return {};
  if (type_of(post) == "TemplateProcessing")
    return read_template(post, spec);
  const auto& parts = member(post, "processors");
  if (type_of(post) != "Sequence" || !parts.is_array())
    return unsupported("post_processor", post, supported);
  for (const auto& part : parts) {
    if (type_of(part) == "TemplateProcessing") {
      if (const auto read = read_template(part, spec); !read)
        return fail(read);
    } else if (type_of(part) != "ByteLevel") {
      return unsupported("post_processor", part, supported);
    }
  }
  return {};
}

// -- the file ---------------------------------------------------------------------------------

result<json> parse_file(const std::filesystem::path& file) {
  std::error_code problem;
  const auto status = std::filesystem::status(file, problem);
  if (!std::filesystem::exists(status))
    return bad("no such file");
  if (!std::filesystem::is_regular_file(status))
    return bad("not a regular file");
  std::ifstream in{file, std::ios::binary};
  const std::string text{std::istreambuf_iterator<char>{in}, {}};
  if (!in.good() && !in.eof())
    return bad("cannot be read");
  try {
    return json::parse(text);
  } catch (const json::parse_error& broken) {
    return bad("not JSON, the error is near byte " + std::to_string(broken.byte) + " of "
               + std::to_string(text.size()));
  } catch (const json::exception&) { // A number that no double can hold.
    return bad("not JSON, it has a number out of range");
  }
}

result<tokenizer_spec> spec_of(const json& root) {
  if (!root.is_object())
    return bad("not a tokenizer: the JSON is no object");
  tokenizer_spec spec;
  const auto& model = member(root, "model");
  if (!model.is_object())
    return bad("not a tokenizer: it has no model");
  if (const auto read = check_model_kind(model); !read)
    return fail(read);
  if (const auto read = read_vocabulary(model, spec); !read)
    return fail(read);
  if (const auto read = read_merges(model, spec); !read)
    return fail(read);
  const auto ignore_merges = flag(model, "ignore_merges", false, "model");
  if (!ignore_merges)
    return fail(ignore_merges);
  spec.ignore_merges = *ignore_merges;
  const auto nfc = has_nfc(member(root, "normalizer"));
  if (!nfc)
    return fail(nfc);
  spec.nfc = *nfc;
  if (const auto read = read_pre_tokenizer(member(root, "pre_tokenizer"), spec); !read)
    return fail(read);
  if (const auto read = read_added_tokens(member(root, "added_tokens"), spec); !read)
    return fail(read);
  if (const auto read = read_post_processor(member(root, "post_processor"), spec); !read)
    return fail(read);
  if (const auto& decoder = member(root, "decoder"); type_of(decoder) != "ByteLevel")
    return unsupported("decoder", decoder, "ByteLevel");
  return spec;
}

} // namespace

result<tokenizer_spec> read_spec(const std::filesystem::path& file) {
  const auto root = parse_file(file);
  auto spec = root ? spec_of(*root) : result<tokenizer_spec>{fail(root)};
  if (!spec)
    return fail(spec.error().code, file.string() + ": " + spec.error().detail);
  return spec;
}

} // namespace rollcast
