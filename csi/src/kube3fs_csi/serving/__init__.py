"""What the gRPC services of the driver share: errors, the interceptor, locks, servers on unix sockets."""
