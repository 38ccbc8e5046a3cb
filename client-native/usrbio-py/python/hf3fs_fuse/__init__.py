"""3FS's package of this name: its modules `io` and `fuse`."""
