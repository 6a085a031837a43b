"""The files that evaluation writes, and the functions that read and write them."""
