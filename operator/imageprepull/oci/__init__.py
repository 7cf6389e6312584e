"""OCI and Docker image formats: references, digests, descriptors, manifests, platforms. Pure; no I/O."""
