"""How a weight gets into a constraint at the least loss; see `contract`."""
