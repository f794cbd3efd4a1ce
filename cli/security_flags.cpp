#include "cli/security_flags.hpp"

#include "cli/flags.hpp"

namespace rollcast::cli {

void add_controller_keys(CLI::App& app, wire::controller_keys& keys) {
  add(app, "--curve-server", keys.server, "the scheduler's public key, or a file with it");
  add(app, "--curve-key", keys.key, "our secret key file, if the scheduler has keys");
}

void add_data_key(CLI::App& app, std::filesystem::path& key) {
  add(app, "--data-key", key,
      "secret key file, the same for every process of the cluster: data is encrypted, and nobody "
      "without it is let in");
}

void add_cluster_keys(CLI::App& app, cluster_keys& keys) {
  add_data_key(app, keys.data_key);
  add(app, "--tls-cert", keys.tls.certificate,
      "certificate (PEM) for mutual TLS between scheduler and workers");
  add(app, "--tls-key", keys.tls.key, "its key (PEM)");
  add(app, "--tls-ca", keys.tls.ca, "CA (PEM) that has signed every certificate of the cluster");
}

void add_door(CLI::App& app, door_flags& door) {
  auto* secret = add(app, "--curve-secret", door.secret,
                     "secret key file of the scheduler; with it only known keys are controllers");
  auto* clients = add(app, "--curve-clients", door.clients,
                      "allow list: lines `name public-key [batches=N] [groups=N] [kept=N] "
                      "[responses=N] [requests=N] [tokens=N] [connections=N]`");
  clients->needs(secret);
  add(app, "--curve-grace-s", door.grace_s, "a key that was replaced is good for so long");
  add(app, "--connections-max", door.connections_max, "of controllers")->check(at_least_1);
  add(app, "--connections-per-address-max", door.connections_per_address_max,
      "of controllers at one address")
    ->check(at_least_1);
  add(app, "--client-batches-max", door.client.batches, "unfinished batches of one controller")
    ->check(at_least_1);
  add(app, "--client-groups-max", door.client.groups, "unfinished groups of one controller")
    ->check(at_least_1);
  add(app, "--client-kept-max", door.client.kept,
      "batches of one controller whose end it has not acknowledged")
    ->check(at_least_1);
  add(app, "--client-responses-max", door.client.responses, "responses of those batches")
    ->check(at_least_1);
  add(app, "--client-tokens-max", door.client.tokens,
      "tokens of one controller's prompts and of results that it has not acknowledged")
    ->check(at_least_1);
  add(app, "--client-connections-max", door.client.connections,
      "of one controller, known by its key")
    ->check(at_least_1);
  add(app, "--client-requests-max", door.client.requests, "unanswered requests of one controller")
    ->check(at_least_1);
}

} // namespace rollcast::cli
