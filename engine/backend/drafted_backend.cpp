#include "engine/backend/drafted_backend.hpp"

#include "engine/backend/forwarding_backend.hpp"
#include "engine/base/check.hpp"
#include "engine/model/tensor_plan.hpp"
#include "engine/model/tensor_source.hpp"

#include <algorithm>
#include <mutex>
#include <utility>
#include <vector>

namespace rollcast {

namespace {

/// Weights of a model, and of its drafter.
class drafted_weights final : public device_weights {
public:
  drafted_weights(std::shared_ptr<const device_weights> model,
                  std::shared_ptr<const device_weights> draft)
    : model_(std::move(model)), draft_(std::move(draft)) {}

  content_hash hash() const noexcept override { return model_->hash(); }
  std::span<const tensor_info> tensors() const noexcept override { return model_->tensors(); }
  const device_weights& bare() const noexcept override { return model_->bare(); }

  const std::shared_ptr<const device_weights>& model() const noexcept { return model_; }
  const std::shared_ptr<const device_weights>& draft() const noexcept { return draft_; }

private:
  std::shared_ptr<const device_weights> model_;
  std::shared_ptr<const device_weights> draft_;
};

/// @pre a device of this kind made them.
const drafted_weights& pair_in(const device_weights& weights) noexcept {
  const auto* const pair = dynamic_cast<const drafted_weights*>(&weights);
  ROLLCAST_CHECK(pair != nullptr);
  return *pair;
}

/// The model's part of an update, without its MTP layer, or the drafter's under its own names.
class update_part final : public tensor_source {
public:
  update_part(const tensor_source& all, bool of_draft, const std::string& layer)
    : all_(all), of_draft_(of_draft), layer_(layer) {}

  std::vector<std::string_view> names() const override {
    std::vector<std::string_view> out;
    for (const auto name : all_.names()) {
      if (name.starts_with(draft_prefix)) {
        if (of_draft_)
          out.push_back(name.substr(draft_prefix.size()));
      } else if (of_draft_ == is_of_layer(name)) {
        out.push_back(name);
      }
    }
    std::sort(out.begin(), out.end());
    return out;
  }
  bool contains(std::string_view name) const override {
    return of_draft_ ? !spelled(name).empty() : all_.contains(name);
  }
  result<tensor_view> tensor(std::string_view name) const override {
    if (!of_draft_)
      return all_.tensor(name);
    auto view =
      all_.tensor(contains(name) ? spelled(name) : std::string(draft_prefix).append(name));
    if (view)
      view->name = name;
    return view;
  }
  std::string origin(std::string_view name) const override {
    return all_.origin(name) + (of_draft_ ? ", of the draft" : "");
  }

private:
  bool is_of_layer(std::string_view name) const {
    return !layer_.empty() && name.starts_with(layer_);
  }
  /// How the update spells a tensor of the drafter; "" if it has none of that name.
  std::string spelled(std::string_view name) const {
    auto prefixed = std::string(draft_prefix).append(name);
    if (all_.contains(prefixed))
      return prefixed;
    return is_of_layer(name) && all_.contains(name) ? std::string(name) : std::string{};
  }

  const tensor_source& all_;
  bool of_draft_;
  const std::string& layer_;
};

class drafted_backend final : public forwarding_backend {
public:
  drafted_backend(std::unique_ptr<backend> device, std::shared_ptr<backend> draft,
                  std::string layer)
    : forwarding_backend(std::move(device)), draft_(std::move(draft)), layer_(std::move(layer)),
      used_(std::make_shared<drafted_weights>(inner_->weights(), draft_->weights())),
      used_draft_(draft_->weights()) {
    draft_->borrow(inner_->weights());
  }

  std::shared_ptr<const device_weights> weights() const noexcept override { return used_; }

  result<std::shared_ptr<const device_weights>>
  prepare_weights(const tensor_source& tensors, const std::shared_ptr<const device_weights>& over,
                  const prepare_options& options) const override {
    const auto* const base = over ? &pair_in(*over) : nullptr;
    const update_part of_model(tensors, false, layer_), of_draft(tensors, true, layer_);
    auto draft = base != nullptr ? base->draft() : draft_in_use();
    const bool changes_draft = !of_draft.names().empty();
    if (changes_draft) {
      const auto sent = [&](const tensor_info& t) { return of_draft.contains(t.name); };
      const auto all = draft->tensors();
      const bool complete = std::all_of(all.begin(), all.end(), sent);
      auto made = draft_->prepare_weights(of_draft, complete ? nullptr : draft, options);
      if (!made)
        return made;
      draft = std::move(*made);
    }
    if (base != nullptr && changes_draft && of_model.names().empty())
      return std::make_shared<const drafted_weights>(base->model(), std::move(draft));
    auto model =
      inner_->prepare_weights(of_model, base != nullptr ? base->model() : nullptr, options);
    if (!model)
      return model;
    return std::make_shared<const drafted_weights>(std::move(*model), std::move(draft));
  }

  void use_weights(std::shared_ptr<const device_weights> weights) override {
    const auto& pair = pair_in(*weights);
    inner_->use_weights(pair.model());
    draft_->use_weights(pair.draft());
    draft_->borrow(pair.model());
    const std::scoped_lock lock{mutex_};
    used_draft_ = pair.draft();
    used_ = std::move(weights);
  }

private:
  /// Another thread may prepare weights while the owner's exchanges them.
  std::shared_ptr<const device_weights> draft_in_use() const {
    const std::scoped_lock lock{mutex_};
    return used_draft_;
  }

  std::shared_ptr<backend> draft_;
  std::string layer_;
  std::shared_ptr<const device_weights> used_;
  mutable std::mutex mutex_;
  std::shared_ptr<const device_weights> used_draft_; ///< Guarded by `mutex_`.
};

} // namespace

std::unique_ptr<backend> with_draft_weights(std::unique_ptr<backend> device,
                                            std::shared_ptr<backend> draft, std::string layer) {
  return std::make_unique<drafted_backend>(std::move(device), std::move(draft), std::move(layer));
}

} // namespace rollcast
