"""HTTP/2 as gRPC uses it: its frames and headers, and connections between processes of one cluster."""
