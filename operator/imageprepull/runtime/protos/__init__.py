"""Generated messages of containerd and the CRI. Remake them with `python -m imageprepull.runtime.protos.generate`."""
