#!/usr/bin/env bash
# Makes what tests of mutual TLS need in directory $1: a CA (ca.pem) with the certificates node.pem
# and renewed.pem (node.key, renewed.key), and a stranger of another CA (other-ca.pem, stranger.pem,
# stranger.key). For tests only: the keys are good for a day.
set -euo pipefail
cd "$1"
umask 077

authority() { # NAME
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 \
    -subj "/CN=$1" -keyout "$1.key" -out "$1.pem" 2>/dev/null
}

certificate() { # NAME CA
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
    -subj "/CN=$1" -keyout "$1.key" -out "$1.csr" 2>/dev/null
  openssl x509 -req -days 1 -in "$1.csr" -CA "$2.pem" -CAkey "$2.key" -CAcreateserial \
    -out "$1.pem" 2>/dev/null
}

authority ca
authority other-ca
certificate node ca
certificate renewed ca
certificate stranger other-ca
