#pragma once

#include "actors/protocol.hpp"

#include <caf/all.hpp>
#include <caf/scheduler/test_coordinator.hpp>
#include <gtest/gtest.h>

#include <vector>

namespace rollcast::test {

/// An actor system without threads: messages move when a test says so and time
/// passes when a test says so. GoogleTest over CAF's test coordinator, so that
/// the house has one test framework and none of CAF's `expect` macros.
class deterministic_system : public testing::Test {
protected:
  struct config : caf::actor_system_config {
    config() {
      add_message_types<caf::id_block::rollcast>();
      set("scheduler.policy", caf::atom("testing"));
    }
  };

  deterministic_system()
    : sys(cfg), sched(dynamic_cast<caf::scheduler::test_coordinator&>(sys.scheduler())), self(sys) {
  }

  ~deterministic_system() override {
    for (const auto& hdl : spawned_) // an actor left alive would hang `sys`
      caf::anon_send_exit(hdl, caf::exit_reason::user_shutdown);
    settle();
  }

  /// Spawns an actor that ends with the test.
  template <class... Ts>
  auto spawn(Ts&&... xs) {
    auto hdl = sys.spawn(std::forward<Ts>(xs)...);
    spawned_.push_back(caf::actor_cast<caf::actor>(hdl));
    settle();
    return hdl;
  }

  /// Delivers messages until none is left; starts no timer.
  void settle() {
    while (sched.try_run_once()) {
    }
  }

  /// Lets `span` pass, firing the timers that fall due, and delivers.
  void pass(caf::timespan span) {
    sched.advance_time(span);
    settle();
  }

  config cfg;
  caf::actor_system sys;
  caf::scheduler::test_coordinator& sched;
  caf::scoped_actor self;

private:
  std::vector<caf::actor> spawned_;
};

} // namespace rollcast::test
