// Goal: requests that wait for the scheduler are bounded by connection, client and in all, in
// number and in bytes, and an answer frees exactly what its request took. Method: requests taken on
// and answered, against small bounds.

#include "actors/request_ledger.hpp"

#include <gtest/gtest.h>

namespace rollcast {
namespace {

constexpr std::size_t many = 1'000;

std::string refusal(const request_ledger& ledger, const std::string& peer,
                    const std::string& client, std::size_t bytes = 1, std::size_t most = many) {
  const auto ok = ledger.check(peer, client, bytes, most);
  EXPECT_TRUE(ok || ok.error().code == errc::queue_full);
  return ok ? "" : ok.error().detail;
}

TEST(request_ledger, bounds_the_number_by_peer_client_and_in_all) {
  request_ledger ledger{{.of_peer = 2, .of_all = 4}};
  ledger.take_on("p", "a", 1, 1);
  ledger.take_on("p", "a", 2, 1);
  EXPECT_NE(refusal(ledger, "p", "a").find("2 requests of yours"), std::string::npos);
  EXPECT_EQ(refusal(ledger, "q", "a"), "");
  EXPECT_NE(refusal(ledger, "q", "a", 1, 2).find("2 of client a"), std::string::npos);
  ledger.take_on("q", "b", 1, 1);
  ledger.take_on("r", "c", 1, 1);
  EXPECT_NE(refusal(ledger, "s", "d").find("4 in all"), std::string::npos);
  ledger.answered("p", 1);
  EXPECT_EQ(refusal(ledger, "s", "d"), "");
  EXPECT_EQ(refusal(ledger, "p", "a", 1, 2), "");
}

TEST(request_ledger, bounds_the_bytes_by_client_and_in_all) {
  request_ledger ledger{{.bytes_of_client = 100, .bytes_of_all = 150}};
  ledger.take_on("p", "a", 1, 60);
  ledger.take_on("q", "a", 1, 30);
  EXPECT_EQ(refusal(ledger, "r", "a", 10), "");
  EXPECT_NE(refusal(ledger, "r", "a", 11).find("requests of 90 bytes of client a"),
            std::string::npos);
  EXPECT_EQ(refusal(ledger, "r", "b", 60), "");
  EXPECT_NE(refusal(ledger, "r", "b", 61), "");
  ledger.answered("p", 1);
  EXPECT_EQ(refusal(ledger, "r", "a", 70), "");
}

TEST(request_ledger, counts_a_request_off_once) {
  request_ledger ledger{{.of_peer = 2}};
  ledger.take_on("p", "a", 5, 1);
  ledger.take_on("p", "a", 5, 2); // its number is the peer's own affair
  ledger.answered("p", 6);
  ledger.answered("q", 5);
  EXPECT_NE(refusal(ledger, "p", "a"), "");
  ledger.answered("p", 5);
  EXPECT_EQ(refusal(ledger, "p", "a"), "");
  ledger.answered("p", 5);
  ledger.answered("p", 5);
  EXPECT_EQ(refusal(ledger, "p", "a", 1, 1), "");
}

} // namespace
} // namespace rollcast
