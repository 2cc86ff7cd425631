"""What weights cost by themselves: terms that are added to the loss; see `contract`."""
