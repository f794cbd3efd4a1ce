// Goal: a dump says what a model computed, the same whatever the pieces; and two dumps are told
// apart at the first operation, row and element that differ.
// Method: the fixture models are scored with a dump, whole and in pieces, and copies of them in
// which one element of one tensor is another. Dumps are also cut, damaged and mixed up, and rows
// are shown to the writer twice, in the wrong order and not at all.

#include "engine/dump/dump_compare.hpp"
#include "engine/dump/dump_writer.hpp"
#include "engine/model/checkpoint.hpp"
#include "kernels/types.hpp"
#include "tests/support/fixture_models.hpp"
#include "tests/support/temporary_directory.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>

namespace rollcast::test {

namespace {

namespace fs = std::filesystem;

/// How a dump is made; `pieces` may not change a byte of it.
struct making {
  std::string profile{default_profile};
  cpu_backend_options pieces;
  bool values = true;
  std::uint32_t value_rows = 0;
  std::vector<token_id> tokens{3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 6};
  std::uint32_t prompt = 9;
  float temperature = 0.8f;
  /// Between the device and the writer.
  std::function<void(const observed_rows&, dump_writer&)> on_the_way =
    [](const observed_rows& rows, dump_writer& to) { to.see(rows); };
};

struct messenger final : activation_observer {
  void see(const observed_rows& rows) override { how->on_the_way(rows, *to); }
  const making* how = nullptr;
  dump_writer* to = nullptr;
};

dump_header header_of(const model_config& config, const backend& device, const making& how) {
  dump_header header;
  header.rollcast_version = "test";
  header.weights_hash = to_string(device.weights_hash());
  header.numerics_profile = device.numerics().name;
  header.layers = static_cast<std::uint32_t>(config.layers);
  header.operations = operations_of(config);
  header.values = how.values;
  header.value_rows = how.value_rows;
  return header;
}

/// Scores the tokens twice, as two sequences, and dumps both. @returns what the writer said.
result<void> make_dump(const fs::path& model, const fs::path& to, const making& how,
                       std::vector<float>* logprobs = nullptr) {
  const auto weights = load_weights(model, how.profile);
  auto device = make_device(weights, how.profile, how.pieces);
  auto writer = dump_writer::create(to, header_of(weights->config(), *device, how));
  if (!writer)
    return fail(writer);
  messenger between;
  between.how = &how;
  between.to = writer->get();
  EXPECT_TRUE(device->observe(&between));
  engine scorer{std::move(device), {64, how.pieces.rows_max, 0}};
  std::vector<float> scored;
  for (const char* name : {"first", "second"}) {
    const auto size = static_cast<std::uint32_t>(how.tokens.size());
    if (auto ok = (*writer)->begin(
          {name, size, how.prompt, hash_of(std::span{how.tokens}), how.temperature});
        !ok)
      return ok;
    EXPECT_TRUE(scorer.score(how.tokens, how.prompt, how.temperature, scored).has_value());
    if (auto ok = (*writer)->end(); !ok)
      return ok;
  }
  if (logprobs != nullptr)
    *logprobs = scored;
  return (*writer)->finish();
}

std::string bytes_in(const fs::path& file) {
  std::ifstream in{file, std::ios::binary};
  return {std::istreambuf_iterator<char>{in}, {}};
}

void write_bytes(const fs::path& file, const std::string& bytes) {
  std::ofstream{file, std::ios::binary | std::ios::trunc} << bytes;
}

/// A copy of a fixture in which one element of a tensor is 3.
fs::path changed_model(const fs::path& to, const std::string& family, const std::string& tensor,
                       std::size_t element) {
  fs::copy(fixture_model(family), to, fs::copy_options::recursive);
  const auto file = to / "model.safetensors";
  auto bytes = bytes_in(file);
  const auto entries = parse_safetensors(std::as_bytes(std::span{bytes}), "copy");
  EXPECT_TRUE(entries.has_value() && entries->contains(tensor)) << tensor;
  const auto& entry = entries->find(tensor)->second;
  const float three = 3;
  const std::uint16_t half = entry.dtype == "F16" ? 0x4200 : kernels::round_bf16(three);
  const std::size_t width = entry.dtype == "F32" ? sizeof three : sizeof half;
  EXPECT_LE(entry.begin + (element + 1) * width, entry.end) << tensor;
  char* const at = bytes.data() + entry.begin + element * width;
  std::memcpy(at, entry.dtype == "F32" ? static_cast<const void*>(&three) : &half, width);
  write_bytes(file, bytes);
  return to;
}

/// The comparison, or a difference that no test expects.
dump_comparison compared(const fs::path& a, const fs::path& b) {
  auto found = compare_dumps(a, b);
  EXPECT_TRUE(found.has_value()) << found.error().detail;
  return found ? *found : dump_comparison{};
}

std::string refusal(const fs::path& a, const fs::path& b) {
  const auto found = compare_dumps(a, b);
  return found ? "" : found.error().detail;
}

} // namespace

TEST(dump, has_the_same_bytes_whatever_the_pieces) {
  for (const auto& family : fixture_families)
    for (const std::string profile : {"cpu-f32-v1", "cpu-bf16-v1"}) {
      temporary_directory place;
      making how;
      how.profile = profile;
      ASSERT_TRUE(make_dump(fixture_model(family), place / "whole", how));
      how.pieces = {3, 40, 16, 4, 3};
      ASSERT_TRUE(make_dump(fixture_model(family), place / "pieces", how));
      EXPECT_FALSE(compared(place / "whole", place / "pieces").first) << family;
      for (const char* file : {"dump.json", "000000.hashes", "000000.values", "000001.values"})
        EXPECT_EQ(bytes_in(place / "whole" / file), bytes_in(place / "pieces" / file))
          << family << ' ' << profile << ' ' << file;
    }
}

TEST(dump, says_what_scoring_without_one_says) {
  temporary_directory place;
  making how;
  std::vector<float> logprobs;
  ASSERT_TRUE(make_dump(fixture_model("qwen3"), place / "dump", how, &logprobs));
  auto device = make_device(load_weights(fixture_model("qwen3"), how.profile), how.profile, {});
  std::vector<float> plain;
  engine scorer{std::move(device), {}};
  ASSERT_TRUE(scorer.score(how.tokens, how.prompt, how.temperature, plain));
  EXPECT_EQ(logprobs, plain);

  const auto header = read_dump_header(place / "dump");
  ASSERT_TRUE(header);
  const auto blocks = blocks_of(*header, header->sequences[1]);
  const auto values = bytes_in(place / "dump" / values_file(1));
  const auto hashes = bytes_in(place / "dump" / hashes_file(1));
  const auto& last = blocks.back();
  ASSERT_EQ(last.what, operation::logprob);
  ASSERT_EQ(values.size() - last.values_at, plain.size() * sizeof(float));
  EXPECT_EQ(std::memcmp(values.data() + last.values_at, plain.data(), plain.size() * 4), 0);
  for (const auto& block : blocks)
    for (std::uint32_t row = 0; row < block.rows; ++row) {
      const std::size_t width = std::size_t{block.columns} * sizeof(float);
      std::array<std::byte, dump_hash_bytes> hash;
      put_hash(hash_of(std::span{values}.subspan(block.values_at + row * width, width)),
               hash.data());
      EXPECT_EQ(std::memcmp(hashes.data() + block.hashes_at + row * dump_hash_bytes, hash.data(),
                            hash.size()),
                0);
    }
}

TEST(dump, attention_of_the_first_position_is_its_value) {
  for (const std::string profile : {"cpu-f32-v1", "cpu-bf16-v1"}) {
    temporary_directory place;
    making how;
    how.profile = profile;
    ASSERT_TRUE(make_dump(fixture_model("qwen2"), place / "dump", how));
    const auto header = read_dump_header(place / "dump");
    ASSERT_TRUE(header);
    const auto config = load_config(fixture_model("qwen2"));
    const auto blocks = blocks_of(*header, header->sequences[0]);
    const auto values = bytes_in(place / "dump" / values_file(0));
    const auto at = [&](operation what) {
      return values.data()
             + blocks[static_cast<std::size_t>(block_index(*header, what, 1))].values_at;
    };
    const std::size_t head_bytes = config->head_dim * sizeof(float);
    for (std::size_t head = 0; head < config->heads; ++head)
      EXPECT_EQ(std::memcmp(at(operation::attention) + head * head_bytes,
                            at(operation::v) + head * config->kv_heads / config->heads * head_bytes,
                            head_bytes),
                0)
        << profile << " head " << head;
  }
}

struct change {
  std::string family;
  std::string tensor;
  std::size_t element;
  operation what;
  std::uint32_t layer;
  std::uint32_t column;
};

TEST(compare_dumps, names_the_operation_whose_weight_was_changed) {
  const std::string l1 = "model.layers.1.";
  const auto config = load_config(fixture_model("llama"));
  ASSERT_TRUE(config);
  const auto row = [](std::size_t width, std::size_t index) { return index * width + 2; };
  const auto head_dim = config->head_dim;
  const std::vector<change> changes{
    {"llama", l1 + "input_layernorm.weight", 7, operation::input_norm, 1, 7},
    {"llama", l1 + "self_attn.q_proj.weight", row(config->hidden, head_dim + 5), operation::q, 1,
     static_cast<std::uint32_t>(head_dim + 5)},
    {"llama", l1 + "self_attn.k_proj.weight", row(config->hidden, 5), operation::k, 1, 5},
    {"llama", l1 + "self_attn.v_proj.weight", row(config->hidden, 5), operation::v, 1, 5},
    {"llama", l1 + "self_attn.o_proj.weight", row(config->heads * head_dim, 6), operation::o, 1, 6},
    {"llama", l1 + "post_attention_layernorm.weight", 9, operation::post_norm, 1, 9},
    {"llama", l1 + "mlp.gate_proj.weight", row(config->hidden, 3), operation::gate_up, 1, 3},
    {"llama", l1 + "mlp.up_proj.weight", row(config->hidden, 3), operation::gate_up, 1,
     static_cast<std::uint32_t>(config->intermediate) + 3},
    {"llama", l1 + "mlp.down_proj.weight", row(config->intermediate, 8), operation::down, 1, 8},
    {"llama", "model.norm.weight", 4, operation::final_norm, 0, 4},
    {"llama", "lm_head.weight", row(config->hidden, 77), operation::logits, 0, 77},
    {"llama", "model.layers.0.mlp.down_proj.weight", row(config->intermediate, 8), operation::down,
     0, 8},
    {"qwen3", l1 + "self_attn.q_norm.weight", 3, operation::q, 1, 3},
    {"qwen3", l1 + "self_attn.k_norm.weight", 3, operation::k, 1, 3},
    {"qwen2", l1 + "self_attn.v_proj.bias", 5, operation::v, 1, 5},
  };
  for (const auto& c : changes)
    for (const std::string profile : {"cpu-f32-v1", "cpu-bf16-v1"}) {
      temporary_directory place;
      making how;
      how.profile = profile;
      const auto model = changed_model(place / "model", c.family, c.tensor, c.element);
      ASSERT_TRUE(make_dump(fixture_model(c.family), place / "a", how));
      ASSERT_TRUE(make_dump(model, place / "b", how));
      const auto found = compared(place / "a", place / "b");
      ASSERT_TRUE(found.first) << c.tensor;
      EXPECT_EQ(name_of(found.first->what), name_of(c.what)) << c.tensor << ' ' << profile;
      EXPECT_EQ(found.first->layer, c.layer) << c.tensor;
      EXPECT_EQ(found.first->sequence, 0u);
      EXPECT_EQ(found.first->row, of_logit_rows(c.what) ? how.prompt - 1 : 0u) << c.tensor;
      EXPECT_EQ(found.first->differing, found.first->rows) << c.tensor;
      ASSERT_TRUE(found.first->at);
      EXPECT_EQ(found.first->at->column, c.column) << c.tensor;
      ASSERT_EQ(found.notes.size(), 1u);
      EXPECT_TRUE(found.notes[0].starts_with("weights: "));
    }
}

TEST(compare_dumps, names_the_position_whose_token_has_another_embedding) {
  temporary_directory place;
  making how;
  how.values = false;
  const auto config = load_config(fixture_model("qwen3"));
  const auto model = changed_model(place / "model", "qwen3", "model.embed_tokens.weight",
                                   9 * config->hidden + 11); // token 9 is at 5, 12 and 14
  ASSERT_TRUE(make_dump(fixture_model("qwen3"), place / "a", how));
  ASSERT_TRUE(make_dump(model, place / "b", how));
  auto found = compared(place / "a", place / "b");
  ASSERT_TRUE(found.first);
  EXPECT_EQ(to_text(*found.first), "sequence 0 (first), embedding, row 5; 3 of 20 rows of this "
                                   "operation differ");
  how.values = true;
  how.value_rows = 5;
  ASSERT_TRUE(make_dump(model, place / "b5", how));
  ASSERT_TRUE(make_dump(fixture_model("qwen3"), place / "a5", how));
  EXPECT_FALSE(compared(place / "a5", place / "b5").first->at);
  how.value_rows = 6;
  ASSERT_TRUE(make_dump(model, place / "b6", how));
  EXPECT_FALSE(compared(place / "a5", place / "b6").first->at);
  ASSERT_TRUE(make_dump(fixture_model("qwen3"), place / "a6", how));
  found = compared(place / "a6", place / "b6");
  ASSERT_TRUE(found.first->at);
  EXPECT_EQ(found.first->at->column, 11u);
  EXPECT_NE(to_text(*found.first).find("element 11 of 64: "), std::string::npos);
  EXPECT_NE(to_text(*found.first).find(" and 3 (0x40400000); 3 of 20"), std::string::npos)
    << to_text(*found.first);
}

TEST(compare_dumps, notes_a_temperature_that_changes_log_probabilities_alone) {
  temporary_directory place;
  making how;
  ASSERT_TRUE(make_dump(fixture_model("mimo"), place / "a", how));
  how.temperature = 0.9f;
  ASSERT_TRUE(make_dump(fixture_model("mimo"), place / "b", how));
  const auto found = compared(place / "a", place / "b");
  ASSERT_TRUE(found.first);
  EXPECT_EQ(found.first->what, operation::logprob);
  EXPECT_EQ(found.first->row, how.prompt - 1);
  ASSERT_EQ(found.notes.size(), 1u);
  EXPECT_TRUE(found.notes[0].starts_with("temperature of sequence 0: "));
}

TEST(compare_dumps, refuses_what_is_no_dump_or_another_one_in_one_line) {
  temporary_directory place;
  making how;
  ASSERT_TRUE(make_dump(fixture_model("qwen3"), place / "a", how));
  const auto copy = [&] {
    fs::remove_all(place / "b");
    fs::copy(place / "a", place / "b");
    return place / "b";
  };
  const auto said = [&](const fs::path& b) { return refusal(place / "a", b); };
  const auto has = [](const std::string& line, const std::string& words) {
    EXPECT_NE(line.find(words), std::string::npos) << line;
    EXPECT_EQ(line.find('\n'), std::string::npos) << line;
  };
  has(said(place / "nowhere"), "nowhere: holds no dump.json");
  has(said(fixture_model("qwen3")), "qwen3: holds no dump.json");
  fs::remove(copy() / "dump.json");
  has(said(place / "b"), "or one that was not finished");
  for (const std::string text : {"", "{", "[]", "{}", "{\"format\":\"rollcast-dump-v2\"}"}) {
    write_bytes(copy() / "dump.json", text);
    has(said(place / "b"), "dump.json: ");
  }
  const auto with = [&](const std::string& old, const std::string& fresh) {
    auto text = bytes_in(copy() / "dump.json");
    const auto at = text.find(old);
    EXPECT_NE(at, std::string::npos) << old;
    write_bytes(place / "b" / "dump.json", text.replace(at, old.size(), fresh));
    return said(place / "b");
  };
  has(with("\"layers\": 2", "\"layers\": 0"), "layers");
  has(with("\"layers\": 2", "\"layers\": 1"), "000000.hashes");
  has(with("\"input_norm\"", "\"sideways\""), "operation 'sideways' is unknown");
  has(with("\"input_norm\"", "\"embedding\""), "operation 'embedding' is out of order");
  has(with("\"columns\": 64", "\"columns\": 64000000000"), "columns");
  has(with("\"prompt_tokens\": 9", "\"prompt_tokens\": 21"), "it must be below tokens");
  has(with("\"token_ids_hash\": \"", "\"token_ids_hash\": \"zz"), "32 hexadecimal digits");
  for (const char* file : {"000000.hashes", "000001.values"}) {
    fs::resize_file(copy() / file, fs::file_size(place / "a" / file) - 1);
    has(said(place / "b"), std::string{file} + ": ");
    has(said(place / "b"), "it was cut or belongs to another dump");
    fs::remove(place / "b" / file);
    has(said(place / "b"), std::string{file} + ": cannot read");
  }
}

TEST(compare_dumps, refuses_dumps_of_other_tokens_or_shapes_and_says_which) {
  temporary_directory place;
  making how;
  how.values = false;
  ASSERT_TRUE(make_dump(fixture_model("qwen3"), place / "a", how));
  ASSERT_TRUE(make_dump(fixture_model("llama"), place / "llama", how));
  EXPECT_NE(refusal(place / "a", place / "llama").find("the width of "), std::string::npos);
  auto other = how;
  other.prompt = 8;
  ASSERT_TRUE(make_dump(fixture_model("qwen3"), place / "prompt", other));
  EXPECT_TRUE(refusal(place / "a", place / "prompt")
                .starts_with("the prompt's length of sequence 0 is 9 in "));
  other = how;
  other.tokens.back() = 7;
  ASSERT_TRUE(make_dump(fixture_model("qwen3"), place / "ids", other));
  EXPECT_TRUE(
    refusal(place / "a", place / "ids").starts_with("the hash of the token ids of sequence 0 is "));
  other = how;
  other.tokens.pop_back();
  ASSERT_TRUE(make_dump(fixture_model("qwen3"), place / "short", other));
  EXPECT_TRUE(refusal(place / "a", place / "short")
                .starts_with("the number of tokens of sequence 0 is 21 in "));
}

TEST(compare_dumps, believes_no_values_that_are_not_those_that_were_hashed) {
  temporary_directory place;
  making how;
  ASSERT_TRUE(make_dump(fixture_model("qwen3"), place / "a", how));
  how.temperature = 0.5f;
  ASSERT_TRUE(make_dump(fixture_model("qwen3"), place / "b", how));
  const auto file = place / "b" / "000000.values";
  auto bytes = bytes_in(file);
  const auto row = bytes.size() - 12 * sizeof(float); // the first log-probability
  bytes[row] = static_cast<char>(bytes[row] ^ 1);
  write_bytes(file, bytes);
  EXPECT_NE(refusal(place / "a", place / "b").find("the dump is damaged"), std::string::npos);
}

TEST(dump_writer, refuses_rows_that_come_twice_out_of_order_or_not_at_all) {
  const auto refused = [](auto on_the_way) {
    temporary_directory place;
    making how;
    how.pieces = {1, 40, 16, 4, 3};
    how.on_the_way = on_the_way;
    const auto made = make_dump(fixture_model("qwen3"), place / "dump", how);
    EXPECT_FALSE(fs::exists(place / "dump" / "dump.json"));
    return made ? "" : made.error().detail;
  };
  const auto is_v = [](const observed_rows& rows) {
    return rows.what == operation::v && rows.layer == 1 && rows.positions.front() == 4;
  };
  EXPECT_EQ(refused([&](const observed_rows& rows, dump_writer& to) {
              to.see(rows);
              if (is_v(rows))
                to.see(rows);
            }),
            "dump of sequence 0: layer 1 v: row 4 came when row 8 of 20 was due");
  EXPECT_EQ(refused([&](const observed_rows& rows, dump_writer& to) {
              if (!is_v(rows))
                to.see(rows);
            }),
            "dump of sequence 0: layer 1 v: row 8 came when row 4 of 20 was due");
  EXPECT_EQ(
    refused([&](const observed_rows& rows, dump_writer& to) {
      auto swapped = rows;
      const std::vector<std::uint32_t> backwards{rows.positions.rbegin(), rows.positions.rend()};
      swapped.positions = backwards;
      to.see(is_v(rows) ? swapped : rows);
    }),
    "dump of sequence 0: layer 1 v: row 7 came when row 4 of 20 was due");
  EXPECT_EQ(refused([&](const observed_rows& rows, dump_writer& to) {
              if (rows.what != operation::logprob)
                to.see(rows);
            }),
            "dump of sequence 0: logprob: 0 of 12 rows came");
  EXPECT_EQ(refused([&](const observed_rows& rows, dump_writer& to) {
              auto narrow = rows;
              narrow.columns -= rows.what == operation::logits;
              to.see(narrow);
            }),
            "dump of sequence 0: logits has 199 columns, not 200");
}

TEST(dump_writer, takes_only_a_directory_of_its_own) {
  temporary_directory place;
  const making how;
  ASSERT_TRUE(make_dump(fixture_model("qwen3"), place / "dump", how));
  const auto again = make_dump(fixture_model("qwen3"), place / "dump", how);
  ASSERT_FALSE(again);
  EXPECT_NE(again.error().detail.find("is not empty"), std::string::npos);
  write_bytes(place / "file", "x");
  EXPECT_FALSE(make_dump(fixture_model("qwen3"), place / "file" / "dump", how));
}

} // namespace rollcast::test
