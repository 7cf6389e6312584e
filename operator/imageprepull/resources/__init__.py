"""The two kinds of `imageprepull.io/v1alpha1` as typed models. No I/O; the schema in `crds/` is the source of truth."""

GROUP = "imageprepull.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
