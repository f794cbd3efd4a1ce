#include "cluster/telemetry/cluster_view.hpp"

#include <nlohmann/json.hpp>

#include <utility>

namespace rollcast {

namespace {

using json = nlohmann::ordered_json;

const char* name_of(cluster_view::stage at) {
  switch (at) {
    case cluster_view::stage::waiting: return "waiting";
    case cluster_view::stage::running: return "running";
    case cluster_view::stage::done: return "done";
  }
  return "";
}

json json_of(const cluster_view::worker& w) {
  auto chunks = json::array();
  for (const auto& c : w.chunks)
    chunks.push_back(
      {{"group", c.group}, {"index", c.index}, {"tokens", c.tokens}, {"expected", c.expected}});
  return {{"id", w.id},
          {"name", w.name},
          {"state", w.state},
          {"epoch", w.epoch},
          {"running", w.running},
          {"waiting", w.waiting},
          {"slots", w.slots},
          {"kv_blocks", w.kv_blocks},
          {"kv_used", w.kv_used},
          {"kv_parked", w.kv_parked},
          {"tokens_per_s", w.tokens_per_s},
          {"chunks_in_all", w.chunks_in_all},
          {"chunks", std::move(chunks)}};
}

json json_of(const cluster_view::group& g) {
  auto members = json::array();
  for (const auto& m : g.members)
    members.push_back(
      {{"index", m.index}, {"tokens", m.tokens}, {"at", name_of(m.at)}, {"worker", m.worker}});
  return {{"id", g.id},
          {"batch", g.batch},
          {"expected", g.expected},
          {"limit", g.limit},
          {"responses", g.responses},
          {"finished", g.finished},
          {"members", std::move(members)}};
}

json json_of(const cluster_view::batch& b) {
  return {{"id", b.id},
          {"policy", b.policy},
          {"phase", b.phase},
          {"responses", b.responses},
          {"finished", b.finished},
          {"running", b.running},
          {"tokens", b.tokens},
          {"seconds", b.seconds}};
}

template <class T>
json list_of(const std::vector<T>& from) {
  auto out = json::array();
  for (const auto& x : from)
    out.push_back(json_of(x));
  return out;
}

} // namespace

std::string to_json(const cluster_view& view, double age_s) {
  auto alerts = json::array();
  for (const auto& a : view.alerts)
    alerts.push_back({{"wrong", a.wrong}, {"text", a.text}});
  const json out{{"age_s", age_s},
                 {"version", view.version},
                 {"model", view.model},
                 {"numerics_profile", view.numerics},
                 {"uptime_s", view.uptime_s},
                 {"tokens_per_s", view.tokens_per_s},
                 {"history", view.history},
                 {"tokens", view.tokens},
                 {"responses", view.responses},
                 {"running", view.running},
                 {"waiting", view.waiting},
                 {"live_groups", view.live_groups},
                 {"epoch", view.epoch},
                 {"next_epoch", view.next_epoch},
                 {"previous_epoch", view.previous_epoch},
                 {"phase", view.phase},
                 {"workers_prepared", view.workers_prepared},
                 {"workers_in_all", view.workers_in_all},
                 {"batches_in_all", view.batches_in_all},
                 {"alerts", std::move(alerts)},
                 {"workers", list_of(view.workers)},
                 {"batches", list_of(view.batches)},
                 {"groups", list_of(view.groups)}};
  // A name may hold any bytes; what is no UTF-8 is shown as such, and never throws.
  return out.dump(-1, ' ', false, json::error_handler_t::replace);
}

} // namespace rollcast
