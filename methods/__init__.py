"""Published post-training quantization methods, one file each."""
