"""The entry points: `imageprepull pull|agent|operator` and `kubectl image-prepull`."""
