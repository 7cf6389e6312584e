"""The pull itself: what is missing, download into the spool, ingest, apply in order, image records."""
