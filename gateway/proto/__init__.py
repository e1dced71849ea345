"""The gRPC protocols: .proto files and what protoc makes of them (`python -m gateway.proto.generate`)."""
