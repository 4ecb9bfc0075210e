#!/bin/sh
# Writes a root certificate (ca.pem) and a certificate of localhost that it signed (server.pem, server.key), for tests of TLS.
# The key of the root is not kept. Needs openssl.
set -eu
cd "$(dirname "$0")"
dir=$(mktemp -d)
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 36500 -subj "/CN=llm-hub test root" \
    -addext "basicConstraints=critical,CA:TRUE" -keyout "$dir/ca.key" -out ca.pem
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=localhost" -keyout server.key -out "$dir/server.csr"
printf 'subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\n' > "$dir/extensions"
openssl x509 -req -in "$dir/server.csr" -CA ca.pem -CAkey "$dir/ca.key" -CAcreateserial -CAserial "$dir/serial" -days 36500 \
    -extfile "$dir/extensions" -out server.pem
rm -r "$dir"
