"""Data for programs that read it from the disk, without an import."""
