"""What a calibrated method is fitted on: samples, inputs of blocks, statistics."""
