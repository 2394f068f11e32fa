"""Updates with TorchRL's losses and modules; :mod:`bench.perf.rivals.torchrl_eager` runs them."""
