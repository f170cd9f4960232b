"""Metrics: fidelity to the unquantized model, the oracle of the bundled model, VBench."""
