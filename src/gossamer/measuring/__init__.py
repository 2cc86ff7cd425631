"""What is measured: size, MACs, memory, latency, quality, ranges."""
