// Goal: the scheduler's page is served with a policy that lets it run its own script and nothing
// else, and what it is told is sound whatever names hold.
// Method: the responder without sockets; a status board driven by a pretend clock.

#include "actors/status_board.hpp"
#include "cluster/telemetry/http_responder.hpp"
#include "cluster/telemetry/status_page.hpp"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <string>

namespace rollcast {
namespace {

constexpr std::uint64_t second = 1'000'000'000;

std::string get(const http_routes& routes, const std::string& path) {
  return http_responder{routes}.answer("GET " + path + " HTTP/1.1\r\nHost: x\r\n\r\n");
}

http_routes routes(std::string_view page) {
  http_routes out;
  out.metrics = [] { return std::string{}; };
  out.healthz = out.readyz = [] { return health{true, "ok"}; };
  out.status = [] { return std::string{"{}"}; };
  out.page = page;
  return out;
}

TEST(page, its_policy_names_its_own_script_by_hash) {
  const auto answer = get(routes("<style>a{}</style><script>run()</script>"), "/");
  EXPECT_NE(answer.find("script-src 'sha256-AvyuiL0SD1mVY3NNxR+V2uo+lhk6RMFrytWmRt6CrJQ='"),
            std::string::npos)
    << answer;
  EXPECT_NE(answer.find("default-src 'none'; connect-src 'self'"), std::string::npos);
  EXPECT_EQ(answer.find("unsafe"), std::string::npos);
}

TEST(page, that_is_embedded_has_one_script_and_one_style) {
  const auto answer = get(routes(status_page()), "/");
  EXPECT_TRUE(answer.starts_with("HTTP/1.1 200"));
  EXPECT_NE(answer.find("</html>"), std::string::npos);
  EXPECT_EQ(answer.find("script-src 'none'"), std::string::npos);
  EXPECT_EQ(answer.find("style-src 'none'"), std::string::npos);
  EXPECT_EQ(answer.find("<script", answer.find("<script") + 1), std::string::npos);
}

TEST(page, is_not_there_for_processes_that_have_none) {
  EXPECT_TRUE(get(routes(""), "/").starts_with("HTTP/1.1 404"));
  auto none = routes("");
  none.status = {};
  EXPECT_TRUE(get(none, "/status.json").starts_with("HTTP/1.1 404"));
}

/// One turn of the scheduler: a worker has generated so much.
void look(status_board& board, std::uint64_t at, std::uint64_t worker, std::uint64_t tokens) {
  ASSERT_TRUE(board.due(at));
  board.pace(worker, tokens);
  board.pin({});
}

nlohmann::json shown(const status_board& board) {
  return nlohmann::json::parse(board.json());
}

TEST(status_board, shows_nothing_before_the_first_view) {
  EXPECT_EQ(status_board{"1"}.json(), "{}");
}

TEST(status_board, is_due_once_a_second) {
  status_board board{"1"};
  EXPECT_TRUE(board.due(5 * second));
  EXPECT_FALSE(board.due(5 * second + second / 2));
  EXPECT_TRUE(board.due(6 * second));
}

TEST(status_board, works_out_tokens_a_second) {
  status_board board{"1"};
  look(board, 1 * second, 1, 500); // where the counter stands says nothing of speed
  EXPECT_EQ(shown(board)["history"], nlohmann::json({0.0}));
  look(board, 3 * second, 1, 700);
  EXPECT_EQ(shown(board)["history"], nlohmann::json({0.0, 100.0}));
  EXPECT_EQ(shown(board)["tokens_per_s"], 50.0);
  look(board, 4 * second, 1, 20); // another incarnation under its number: no negative speed
  EXPECT_EQ(shown(board)["history"].back(), 0.0);
  look(board, 5 * second, 2, 9999); // a worker that was not there before
  EXPECT_EQ(shown(board)["history"].back(), 0.0);
}

TEST(status_board, tells_of_lost_workers_for_ten_minutes) {
  status_board board{"1"};
  look(board, 100 * second, 1, 0);
  board.lost("w7");
  look(board, 130 * second, 1, 0);
  ASSERT_EQ(shown(board)["alerts"].size(), 1u);
  EXPECT_EQ(shown(board)["alerts"][0]["text"],
            "Worker w7 was lost 30 s ago; its chunks run elsewhere.");
  EXPECT_EQ(shown(board)["alerts"][0]["wrong"], true);
  look(board, 701 * second, 1, 0);
  EXPECT_EQ(shown(board)["alerts"].size(), 0u);
}

TEST(status_board, keeps_its_history_and_losses_short) {
  status_board board{"1"};
  for (std::uint64_t s = 1; s < 500; ++s)
    look(board, s * second, 1, s);
  for (int i = 0; i < 100; ++i)
    board.lost("w");
  look(board, 500 * second, 1, 0);
  EXPECT_EQ(shown(board)["history"].size(), 120u);
  EXPECT_EQ(shown(board)["alerts"].size(), 8u);
}

TEST(cluster_view, any_bytes_in_a_name_are_json) {
  cluster_view view;
  view.workers.push_back({});
  view.workers.back().name = "\xff\"<\n\x01";
  const auto text = to_json(view, 0);
  EXPECT_TRUE(nlohmann::json::accept(text)) << text;
}

} // namespace
} // namespace rollcast
