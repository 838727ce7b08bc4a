"""A server of gRPC over HTTP/2 that knows nothing of models: bytes in, bytes out.

docs/gateway.md says why it is our own.
"""
