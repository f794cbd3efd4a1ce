#!/bin/bash
# HEALTHCHECK of the image: exits 0 if the process answers /healthz with 200, else 1. Needs no tool
# that the image has not.
port=${ROLLCAST_METRICS_PORT:-7452}
exec 3<>"/dev/tcp/127.0.0.1/$port" || exit 1
printf 'GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' >&3
IFS=' ' read -r -t 4 _ code _ <&3
[[ "$code" == 200 ]] || exit 1
