"""S2Q-VDiT."""
