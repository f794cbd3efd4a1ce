#include "actors/weight_store.hpp"

#include "engine/base/check.hpp"
#include "engine/model/checkpoint.hpp"

#include <algorithm>
#include <utility>

namespace rollcast {
namespace {

/// Threads that have read a directory, or soon see that nobody waits for it.
constexpr std::size_t readers_max = 4;

result<void> stage_directory(weight_stage& stage, const std::filesystem::path& directory,
                             const std::stop_token& stop) {
  const auto source = checkpoint::open(directory);
  if (!source)
    return fail(source);
  for (const auto name : source->names()) {
    if (stop.stop_requested())
      return fail(errc::cancelled,
                  "the update was aborted while " + directory.string() + " was read");
    const auto tensor = source->tensor(name);
    if (!tensor)
      return fail(tensor);
    if (auto added = stage.add_slice({tensor->name, tensor->type, tensor->shape, 0}, tensor->bytes);
        !added)
      return fail(added);
    source->release(*tensor);
  }
  return {};
}

} // namespace

result<std::unique_ptr<weight_store>> weight_store::open(weight_exchange_options options,
                                                         std::uint64_t memory_kept) {
  auto exchange = weight_exchange::open(std::move(options));
  if (!exchange)
    return fail(exchange);
  return std::make_unique<weight_store>(std::move(*exchange), memory_kept);
}

void weight_store::begin(std::uint64_t update, bool complete) {
  drop(update_);
  update_ = update;
  complete_ = complete;
  stage_ = std::make_shared<weight_stage>(update, weight_stage_limits{}, memory_);
}

result<void> weight_store::add(const wire::weight_bucket& bucket) {
  ROLLCAST_CHECK(stage_);
  if (buckets_.contains(bucket.bucket))
    return fail(errc::batch_conflict, "bucket " + std::to_string(bucket.bucket)
                                        + " of the update to epoch " + std::to_string(bucket.epoch)
                                        + " came before; number them 1, 2, ...");
  for (const auto& s : bucket.slices)
    if (auto added =
          stage_->add_slice({s.name, s.type, s.shape, s.offset}, std::as_bytes(std::span{s.data}));
        !added)
      return added;
  buckets_.insert(bucket.bucket);
  return {};
}

void weight_store::start_reader(std::function<void(const std::stop_token&)> body) {
  if (aside_)
    return aside_([body = std::move(body)] { body({}); });
  if (readers_.size() == readers_max)
    readers_.erase(readers_.begin());
  readers_.emplace_back(std::move(body));
}

void weight_store::read(const std::filesystem::path& directory, staged_callback done) {
  start_reader([stage = stage_, directory, done = std::move(done)](const std::stop_token& stop) {
    const auto read = stage_directory(*stage, directory, stop);
    done(read ? stage->finish() : fail(read));
  });
}

void weight_store::finish(staged_callback done) {
  ROLLCAST_CHECK(stage_);
  start_reader(
    [stage = stage_, done = std::move(done)](const std::stop_token&) { done(stage->finish()); });
}

const weight_parcel& weight_store::hand_out(std::uint64_t update,
                                            std::shared_ptr<const weight_cargo> cargo) {
  stage_.reset();
  update_ = update;
  parcel_ = {std::move(cargo), complete_};
  exchange_->offer(update, parcel_.cargo);
  return parcel_;
}

const weight_parcel* weight_store::staged(std::uint64_t update) const {
  return update == update_ && parcel_.cargo ? &parcel_ : nullptr;
}

std::shared_ptr<const weight_parcel> weight_store::whole(std::uint64_t update,
                                                         std::uint64_t epoch) {
  const auto it =
    std::find_if(sent_.begin(), sent_.end(), [&](const sent_epoch& s) { return s.epoch == epoch; });
  if (it == sent_.end() || it->tensors.empty())
    return nullptr;
  std::vector<tensor_info> infos;
  std::vector<kept_bytes> content;
  for (const auto& [name, t] : it->tensors) {
    infos.push_back(t.info);
    content.push_back(t.content);
  }
  auto cargo = weight_cargo::of(std::move(infos), std::move(content));
  ROLLCAST_CHECK(cargo); // every tensor of it was in a cargo before
  exchange_->offer(update, *cargo);
  return std::make_shared<const weight_parcel>(weight_parcel{std::move(*cargo), it->complete});
}

void weight_store::commit(std::uint64_t update, std::uint64_t epoch) {
  ROLLCAST_CHECK(staged(update) != nullptr);
  sent_epoch next{epoch, parcel_.complete, {}};
  if (!parcel_.complete && !sent_.empty()) {
    next.complete = sent_.back().complete;
    next.tensors = sent_.back().tensors;
  }
  for (const auto& info : parcel_.cargo->tensors())
    next.tensors[info.name] = {info, *parcel_.cargo->tensor(info.name)};
  sent_.push_back(std::move(next));
  if (sent_.size() > 2)
    sent_.erase(sent_.begin());
  parcel_ = {};
}

void weight_store::go_back(std::uint64_t epoch) {
  std::erase_if(sent_, [&](const sent_epoch& s) { return s.epoch != epoch; });
  if (sent_.empty())
    sent_.push_back({epoch, false, {}}); // the checkpoint that all were started from
}

void weight_store::drop(std::uint64_t update) {
  if (update != update_)
    return;
  exchange_->withdraw(update);
  if (!readers_.empty())
    readers_.back().request_stop();
  if (stage_)
    stage_->give_up();
  stage_.reset();
  buckets_.clear();
  parcel_ = {};
}

} // namespace rollcast
