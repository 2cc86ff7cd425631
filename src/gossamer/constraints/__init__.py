"""What form a weight must take. A constraint is a frozen value with `project`; see `contract`."""
