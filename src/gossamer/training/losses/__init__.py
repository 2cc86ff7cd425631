"""What training lessens: one file a loss."""
