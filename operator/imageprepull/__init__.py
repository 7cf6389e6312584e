"""ImagePrepull: container images on Kubernetes nodes before any pod asks for them."""

__version__ = "0.1.0"
