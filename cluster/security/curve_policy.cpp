#include "cluster/security/curve_policy.hpp"

#include <algorithm>
#include <limits>
#include <utility>

namespace rollcast {
namespace {

constexpr std::size_t replaced_max = 1; // each costs a listener

constexpr auto unlimited = std::numeric_limits<std::uint32_t>::max();

} // namespace

result<std::shared_ptr<curve_policy>> curve_policy::open(curve_policy_options options) {
  std::shared_ptr<curve_policy> made{new curve_policy{std::move(options)}};
  if (const auto ok = made->read_keys(); !ok)
    return fail(ok);
  if (const auto ok = made->read_list(); !ok)
    return fail(ok);
  return made;
}

result<void> curve_policy::read_keys() {
  secret_stamp_ = stamp_of(options_.secret); // before it is read: what comes later is seen later
  auto keys = load_keys(options_.secret);
  if (!keys)
    return fail(keys);
  if (keys->secret_key == current_.secret_key)
    return {};
  if (!current_.secret_key.empty())
    replaced_.insert(replaced_.begin(), {current_, clock::now() + options_.grace});
  current_ = std::move(*keys);
  std::erase_if(replaced_, [this](const replaced& old) { return old.keys == current_; });
  if (replaced_.size() > replaced_max)
    replaced_.resize(replaced_max);
  ++keys_version_;
  ++list_version_;
  return {};
}

result<void> curve_policy::read_list() {
  if (options_.clients.empty())
    return {};
  clients_stamp_ = stamp_of(options_.clients);
  const auto text = read_trusted(options_.clients, "allow list");
  if (!text)
    return fail(text);
  auto list = allow_list::parse(*text, options_.clients.string(), options_.limits);
  if (!list)
    return fail(list);
  list_ = std::move(*list);
  ++list_version_;
  return {};
}

/// Reads a file that has changed. What is wrong is said once; what may pass by itself, such as too
/// many open files, is tried again the next time.
void curve_policy::take_again(result<void> (curve_policy::*read)(),
                              std::optional<file_stamp>& stamp, std::string& wrong,
                              const char* stays) {
  const auto ok = (this->*read)();
  if (!ok && ok.error().code == errc::io_failed)
    stamp.reset();
  auto now = ok ? std::string{} : ok.error().detail;
  if (!now.empty() && now != wrong)
    complaint_ = now + "; the " + stays + " read before stays in use";
  wrong = std::move(now);
}

void curve_policy::refresh(clock::time_point now) {
  const auto secret = stamp_of(options_.secret);
  const auto clients = options_.clients.empty() ? file_stamp{} : stamp_of(options_.clients);
  const std::scoped_lock lock{mutex_};
  if (secret != secret_stamp_)
    take_again(&curve_policy::read_keys, secret_stamp_, secret_wrong_, "key");
  if (clients != clients_stamp_)
    take_again(&curve_policy::read_list, clients_stamp_, clients_wrong_, "list");
  if (std::erase_if(replaced_, [now](const replaced& old) { return old.until <= now; }) > 0) {
    ++keys_version_;
    ++list_version_;
  }
}

key_pair curve_policy::current() const {
  const std::scoped_lock lock{mutex_};
  return current_;
}

std::vector<key_pair> curve_policy::valid() const {
  const std::scoped_lock lock{mutex_};
  std::vector<key_pair> all{current_};
  for (const auto& old : replaced_)
    all.push_back(old.keys);
  return all;
}

std::uint64_t curve_policy::keys_version() const {
  const std::scoped_lock lock{mutex_};
  return keys_version_;
}

std::uint64_t curve_policy::list_version() const {
  const std::scoped_lock lock{mutex_};
  return list_version_;
}

std::optional<client_entry> curve_policy::admit(std::string_view public_key) const {
  const std::scoped_lock lock{mutex_};
  const auto is_ours = [public_key](const key_pair& keys) { return keys.public_key == public_key; };
  if (is_ours(current_)
      || std::ranges::any_of(replaced_, [&](const replaced& old) { return is_ours(old.keys); }))
    return client_entry{
      "cluster",
      {unlimited, unlimited, unlimited, unlimited, unlimited, unlimited, unlimited},
      true};
  const auto* found = list_.find(public_key);
  return found == nullptr ? std::nullopt : std::optional{*found};
}

std::string curve_policy::complaint() {
  const std::scoped_lock lock{mutex_};
  return std::exchange(complaint_, {});
}

} // namespace rollcast
