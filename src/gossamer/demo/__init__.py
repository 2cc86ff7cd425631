"""The demo network and its data: a small Fashion-MNIST classifier."""
