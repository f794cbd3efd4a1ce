#include "engine/backend/cuda_weights.hpp"

#include "engine/backend/cuda_error.hpp"
#include "engine/base/check.hpp"
#include "engine/model/finite.hpp"
#include "engine/model/tensor_check.hpp"
#include "engine/model/tensor_plan.hpp"
#include "engine/model/tensor_views.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <optional>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

namespace rollcast {

namespace {

namespace gpu = kernels::cuda;

/// Bytes of one of a thread's two staging buffers.
constexpr std::size_t stage_bytes = std::size_t{8} << 20;

/// One tensor in a unit: its row i is row `first + i * step` of the unit.
struct part {
  std::size_t plan; ///< Index of the planned tensor.
  std::size_t first = 0;
  std::size_t step = 1;
};

/// What lies in one piece of device memory: a matrix of bf16 rows, or a vector of f32 "rows" of one
/// element, made of one tensor or of several.
struct unit {
  std::size_t offset = 0; ///< In the arena.
  std::size_t rows = 0;
  std::size_t columns = 0;
  bool vector = false;
  std::vector<part> parts;

  std::size_t row_bytes() const noexcept { return columns * (vector ? 4 : 2); }
  std::size_t bytes() const noexcept { return rows * row_bytes(); }
};

/// Tensors that share a unit have one of these roles.
tensor_role unit_role(tensor_role role) noexcept {
  switch (role) {
    case tensor_role::k:
    case tensor_role::v: return tensor_role::q;
    case tensor_role::up: return tensor_role::gate;
    case tensor_role::k_bias:
    case tensor_role::v_bias: return tensor_role::q_bias;
    default: return role;
  }
}

/// What lies where.
struct layout {
  std::vector<planned_tensor> plan;
  std::vector<unit> units;
  std::map<std::pair<std::size_t, tensor_role>, std::size_t> of_role; ///< In `units`.
  std::size_t bytes = 0;
};

layout lay_out(const model_config& config) {
  layout out;
  out.plan = plan_tensors(config);
  for (std::size_t i = 0; i < out.plan.size(); ++i) {
    const auto& tensor = out.plan[i];
    const auto [at, fresh] =
      out.of_role.try_emplace({tensor.layer, unit_role(tensor.role)}, out.units.size());
    if (fresh)
      out.units.emplace_back();
    auto& u = out.units[at->second];
    u.vector = tensor.shape.size() == 1;
    u.columns = u.vector ? 1 : tensor.shape[1];
    const bool in_turn = tensor.role == tensor_role::gate || tensor.role == tensor_role::up;
    if (in_turn)
      u.parts.push_back({i, u.parts.size(), 2});
    else
      u.parts.push_back({i, u.rows, 1});
    u.rows += tensor.shape[0];
  }
  for (auto& u : out.units) {
    u.offset = out.bytes;
    const bool embedding = out.plan[u.parts[0].plan].role == tensor_role::embedding;
    const std::size_t poison = embedding ? u.row_bytes() : 0; // the row that is NaN
    out.bytes += (u.bytes() + poison + 255) / 256 * 256;
  }
  return out;
}

/// Writes `count` elements of a tensor from element `from` on as the unit stores them.
void convert(const tensor_view& view, std::size_t from, std::size_t count, bool vector,
             std::byte* to) {
  if (!vector && view.type == kernels::dtype::bf16) {
    std::memcpy(to, view.bytes.data() + from * 2, count * 2);
    return;
  }
  for (std::size_t i = 0; i < count; ++i) {
    const float value = element_at(view.bytes, view.type, from + i);
    if (vector) {
      std::memcpy(to + i * 4, &value, 4);
    } else {
      const std::uint16_t bits = kernels::round_bf16(value);
      std::memcpy(to + i * 2, &bits, 2);
    }
  }
}

/// One thread's way to the device: a stream and two buffers that take turns.
class carrier {
public:
  static gpu::device_result<carrier> make(std::uint32_t device) {
    if (auto ok = gpu::use_device(device); !ok)
      return tl::unexpected(ok.error());
    auto stream = gpu::stream::create();
    if (!stream)
      return tl::unexpected(stream.error());
    carrier out{std::move(*stream)};
    for (auto& s : out.stages_) {
      auto memory = gpu::pinned_buffer::allocate(stage_bytes);
      if (!memory)
        return tl::unexpected(memory.error());
      auto sent = gpu::event::create();
      if (!sent)
        return tl::unexpected(sent.error());
      s.memory = std::move(*memory);
      s.sent.emplace(std::move(*sent));
    }
    return out;
  }

  gpu::stream_handle stream() const noexcept { return stream_.handle(); }
  gpu::device_status finish() const { return stream_.synchronize(); }

  /// A buffer that nobody reads any more.
  gpu::device_result<std::byte*> take() {
    turn_ = 1 - turn_;
    if (stages_[turn_].used)
      if (auto ok = stages_[turn_].sent->synchronize(); !ok)
        return tl::unexpected(ok.error());
    return stages_[turn_].memory.data();
  }

  /// Sends the buffer that was taken last.
  gpu::device_status send(std::byte* to, std::size_t bytes) {
    auto& s = stages_[turn_];
    if (auto ok = gpu::copy_async(to, s.memory.data(), bytes, stream()); !ok)
      return ok;
    s.used = true;
    return s.sent->record(stream());
  }

private:
  struct stage {
    gpu::pinned_buffer memory;
    std::optional<gpu::event> sent;
    bool used = false;
  };

  explicit carrier(gpu::stream stream) : stream_(std::move(stream)) {}

  gpu::stream stream_;
  stage stages_[2];
  int turn_ = 0;
};

} // namespace

/// The steps of `load_cuda_weights`, with what they share.
class cuda_weight_loader {
public:
  cuda_weight_loader(std::uint32_t device, const model_config& config, const tensor_source& source,
                     const cuda_weights* base, const prepare_options& options)
    : device_(device), config_(config), source_(source), base_(base), options_(options),
      layout_(lay_out(config)) {}

  result<std::shared_ptr<const cuda_weights>> load();

private:
  result<void> check_tied_head() const;
  result<void> load_units();
  result<void> load_unit(const unit& u, carrier& way);
  result<void> fill_rows(const unit& u, std::size_t row, std::size_t rows, std::byte* to) const;
  void set_pointers();
  template <class T>
  const T* place(std::size_t layer, tensor_role role) const;
  /// "loading weights to GPU 0": what failed.
  std::string doing() const { return "loading weights to GPU " + std::to_string(device_); }

  std::uint32_t device_;
  const model_config& config_;
  const tensor_source& source_;
  const cuda_weights* base_;
  const prepare_options& options_;
  layout layout_;
  cuda_weights out_;
  std::vector<tensor_info> infos_;                ///< As the plan; hashed when loaded.
  std::vector<std::optional<tensor_view>> views_; ///< As the plan; none for what the base has.
};

result<std::shared_ptr<const cuda_weights>> cuda_weight_loader::load() {
  if (const auto named =
        check_names(config_, layout_.plan, source_.names(), base_ == nullptr, source_.origin({}));
      !named)
    return fail(named);
  auto found =
    view_tensors(layout_.plan, source_, base_ ? std::optional{base_->tensors()} : std::nullopt);
  if (!found)
    return fail(found);
  infos_ = std::move(found->infos);
  views_ = std::move(found->views);
  if (const auto tied = check_tied_head(); !tied)
    return fail(tied);
  if (const auto used = gpu::use_device(device_); !used)
    return device_failed(used, doing());
  auto memory = gpu::device_buffer::allocate(layout_.bytes);
  if (!memory)
    return fail(errc::bad_config, doing() + ": no room for " + std::to_string(layout_.bytes >> 20)
                                    + " MiB: " + memory.error().what
                                    + "; take a larger GPU, or fewer --kv-blocks");
  out_.memory_ = std::move(*memory);
  if (const auto loaded = load_units(); !loaded)
    return fail(loaded);
  set_pointers();
  std::sort(infos_.begin(), infos_.end(),
            [](const auto& a, const auto& b) { return a.name < b.name; });
  out_.tensors_ = std::move(infos_);
  out_.hash_ = epoch_hash_of(out_.tensors_);
  return std::make_shared<const cuda_weights>(std::move(out_));
}

// -- what there is ------------------------------------------------------------

result<void> cuda_weight_loader::check_tied_head() const {
  ROLLCAST_CHECK(layout_.plan[0].role == tensor_role::embedding);
  if (!config_.tie_embeddings || !source_.contains("lm_head.weight"))
    return {};
  const auto head = source_.tensor("lm_head.weight");
  if (!head)
    return fail(head);
  const auto& embedding = infos_[0];
  const bool same =
    head->type == embedding.type && head->shape == embedding.shape
    && (views_[0]
          ? std::memcmp(head->bytes.data(), views_[0]->bytes.data(), head->bytes.size()) == 0
          : hash_bytes(head->bytes) == embedding.hash);
  if (!same)
    return fail(errc::bad_checkpoint,
                source_.origin(head->name)
                  + ": tensor lm_head.weight differs from model.embed_tokens.weight although "
                    "tie_word_embeddings is true; set it false or remove the tensor");
  source_.release(*head);
  return {};
}

// -- to the device ------------------------------------------------------------

/// Units are shared by threads; which thread loads one decides nothing.
result<void> cuda_weight_loader::load_units() {
  std::vector<result<void>> outcomes(layout_.units.size());
  std::atomic<std::size_t> next{0};
  const auto work = [&]() -> result<void> {
    auto way = carrier::make(device_);
    if (!way)
      return device_failed(way, doing());
    for (std::size_t i = next++; i < outcomes.size(); i = next++)
      outcomes[i] = load_unit(layout_.units[i], *way);
    if (const auto done = way->finish(); !done)
      return device_failed(done, doing());
    return {};
  };
  const std::size_t count = std::clamp<std::size_t>(options_.threads, 1, outcomes.size());
  std::vector<result<void>> ends(count);
  {
    std::vector<std::jthread> helpers;
    try {
      while (helpers.size() + 1 < count)
        helpers.emplace_back([&ends, &work, at = helpers.size() + 1] { ends[at] = work(); });
    } catch (const std::system_error&) {
      // No more threads to be had: those that run, this one at least, do all the work.
    }
    ends[0] = work();
  }
  for (const auto* outcomes_of : {&outcomes, &ends})
    for (const auto& outcome : *outcomes_of)
      if (!outcome)
        return fail(outcome);
  return {};
}

result<void> cuda_weight_loader::load_unit(const unit& u, carrier& way) {
  std::byte* const to = out_.memory_.data() + u.offset;
  const auto sent = [&](const part& p) { return views_[p.plan].has_value(); };
  const bool any = std::ranges::any_of(u.parts, sent);
  const bool all = std::ranges::all_of(u.parts, sent);
  const std::byte* const before = base_ != nullptr ? base_->memory_.data() + u.offset : nullptr;
  if (layout_.plan[u.parts[0].plan].role == tensor_role::embedding)
    if (auto ok = gpu::fill_async(to + u.bytes(), 0xff, u.row_bytes(), way.stream()); !ok)
      return device_failed(ok, doing());
  if (!any) {
    const auto copied = gpu::copy_async(to, before, u.bytes(), way.stream());
    return copied ? result<void>{} : result<void>{device_failed(copied, doing())};
  }
  for (const auto& p : u.parts)
    if (sent(p))
      infos_[p.plan].hash =
        views_[p.plan]->hash ? *views_[p.plan]->hash : hash_bytes(views_[p.plan]->bytes);
  const std::size_t run = std::max<std::size_t>(1, stage_bytes / u.row_bytes());
  for (std::size_t row = 0; row < u.rows; row += run) {
    if (options_.stop.stop_requested())
      return fail(errc::cancelled, "the weights are not wanted any more");
    const std::size_t rows = std::min(run, u.rows - row);
    const auto stage = way.take();
    if (!stage)
      return device_failed(stage, doing());
    if (!all) { // rows that stay are among those that do not
      const auto got =
        gpu::copy_async(*stage, before + row * u.row_bytes(), rows * u.row_bytes(), way.stream());
      if (!got)
        return device_failed(got, doing());
      if (const auto here = way.finish(); !here)
        return device_failed(here, doing());
    }
    if (auto filled = fill_rows(u, row, rows, *stage); !filled)
      return filled;
    if (auto gone = way.send(to + row * u.row_bytes(), rows * u.row_bytes()); !gone)
      return device_failed(gone, doing());
  }
  for (const auto& p : u.parts)
    if (sent(p))
      source_.release(*views_[p.plan]);
  return {};
}

/// Puts rows [row, row + rows) of a unit into `to`, as far as they were sent.
result<void> cuda_weight_loader::fill_rows(const unit& u, std::size_t row, std::size_t rows,
                                           std::byte* to) const {
  for (const auto& p : u.parts) {
    if (!views_[p.plan])
      continue;
    const auto& view = *views_[p.plan];
    const std::size_t own = layout_.plan[p.plan].shape[0];
    // Of the tensor's rows, those that lie in the range.
    const std::size_t begin = row > p.first ? (row - p.first + p.step - 1) / p.step : 0;
    const std::size_t past =
      row + rows > p.first ? (row + rows - p.first + p.step - 1) / p.step : 0;
    const std::size_t end = std::min(own, past);
    if (begin >= end)
      continue;
    if (!options_.allow_non_finite)
      if (auto finite =
            check_finite(view, begin * u.columns, (end - begin) * u.columns, !u.vector, source_);
          !finite)
        return finite;
    if (p.step == 1) {
      convert(view, begin * u.columns, (end - begin) * u.columns, u.vector,
              to + (p.first + begin - row) * u.row_bytes());
      continue;
    }
    for (std::size_t i = begin; i < end; ++i)
      convert(view, i * u.columns, u.columns, u.vector,
              to + (p.first + i * p.step - row) * u.row_bytes());
  }
  return {};
}

// -- where it is --------------------------------------------------------------

template <class T>
const T* cuda_weight_loader::place(std::size_t layer, tensor_role role) const {
  const auto at = layout_.of_role.find({layer, role});
  if (at == layout_.of_role.end())
    return nullptr;
  return reinterpret_cast<const T*>(out_.memory_.data() + layout_.units[at->second].offset);
}

void cuda_weight_loader::set_pointers() {
  using gpu::bf16_bits;
  for (std::size_t i = 0; i < config_.layers; ++i)
    out_.layers_.push_back(
      {place<float>(i, tensor_role::input_norm), place<float>(i, tensor_role::post_norm),
       place<float>(i, tensor_role::q_norm), place<float>(i, tensor_role::k_norm),
       place<float>(i, tensor_role::q_bias), place<bf16_bits>(i, tensor_role::q),
       place<bf16_bits>(i, tensor_role::o), place<bf16_bits>(i, tensor_role::gate),
       place<bf16_bits>(i, tensor_role::down)});
  out_.final_norm_ = place<float>(0, tensor_role::final_norm);
  out_.embedding_ = place<bf16_bits>(0, tensor_role::embedding);
  out_.lm_head_ =
    config_.tie_embeddings ? out_.embedding_ : place<bf16_bits>(0, tensor_role::lm_head);
}

std::uint64_t cuda_weight_bytes(const model_config& config) {
  return lay_out(config).bytes;
}

result<std::shared_ptr<const cuda_weights>>
load_cuda_weights(std::uint32_t device, const model_config& config, const tensor_source& tensors,
                  const cuda_weights* over, const prepare_options& options) {
  return cuda_weight_loader{device, config, tensors, over, options}.load();
}

} // namespace rollcast
