#!/bin/sh
# Makes the stubs in headway/v1. Needs protoc, and:
#   go install google.golang.org/protobuf/cmd/protoc-gen-go@v1.31.0
#   go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.3.0
set -eu
cd "$(dirname "$0")"
protos=${PROTOS:-../../protos}
package=headway.example/client/headway/v1
options="--go_opt=module=headway.example/client --go-grpc_opt=module=headway.example/client"
for name in common text; do
  options="$options --go_opt=Mheadway/v1/$name.proto=$package --go-grpc_opt=Mheadway/v1/$name.proto=$package"
done
# shellcheck disable=SC2086
protoc -I"$protos" --go_out=. --go-grpc_out=. $options headway/v1/common.proto headway/v1/text.proto
