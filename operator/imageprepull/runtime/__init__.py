"""containerd and the CRI over gRPC: content, snapshots, diff, images, leases, introspection."""
