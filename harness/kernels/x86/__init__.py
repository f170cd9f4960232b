"""Products of 8-bit lanes on x86, in C that is compiled on the machine where it runs."""
