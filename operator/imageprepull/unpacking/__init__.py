"""A layer's tar, compressed, into a directory, exactly as containerd's own apply makes it; run in confined workers."""
